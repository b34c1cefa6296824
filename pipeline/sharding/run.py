"""Makes or checks the shards of a recipe, on Ray or in this process."""

from collections.abc import Callable
from typing import Any

from d2ls.shards import DatasetCard
from pipeline.config.data import DataConfig, SplitConfig, VectorsConfig
from pipeline.config.recipe import Recipe
from pipeline.sharding.tasks import RayTasks
from sharding.codecs import Codec
from sharding.make import Progress, make_shards
from sharding.raster import Reading
from sharding.scan import scan
from sharding.sources.custom_spec import CustomBlocks, CustomClass, CustomFold, CustomSpec, CustomSplit
from sharding.sources.custom_vectors import CustomArea, CustomLayer, CustomVectors
from sharding.spec import ShardSpec
from sharding.tasks import TaskRunner, run_here
from sharding.tiling import Tiling
from sharding.validate import Validation, validate


def ensure_shards(
    recipe: Recipe, *, progress: Callable[[Progress], None] | None = None, no_ray: bool = False
) -> DatasetCard:
    """Makes the missing shards of a recipe; returns the card of the finished set.

    Args:
        recipe: the recipe.
        progress: called after each shard.
        no_ray: work in this process, without Ray.

    Raises:
        DataError, LabelError, StorageError: see `sharding.make.make_shards`.
    """
    return make_shards(shard_spec(recipe), _runner(recipe, no_ray), progress)


def check_raw_data(recipe: Recipe, *, no_ray: bool = False) -> Validation:
    """Reads every image and label image of a recipe and lists all problems; writes nothing.

    Args:
        recipe: the recipe.
        no_ray: work in this process, without Ray.
    """
    return validate(scan(shard_spec(recipe)), _runner(recipe, no_ray))


def shard_spec(recipe: Recipe) -> ShardSpec:
    """Returns the shard set that a recipe describes."""
    data = recipe.data
    return ShardSpec(
        name=recipe.name,
        uri=recipe.shards.uri,
        source=data.source,
        root=data.root,
        protocol=data.protocol,
        options={**data.options, **_custom_options(data)},
        tiling={name: Tiling(t.size, t.stride, t.padding, t.edge) for name, t in data.tiling.items()},
        codec=Codec(**data.codec.model_dump(exclude_none=True)),
        bands=data.bands,
        max_value=data.max_value,
        scale=_pairs(data.scale),
        ground_sampling_distance=data.ground_sampling_distance,
        treat_as_ignored=data.treat_as_ignored,
        splits=data.splits,
        train_split=recipe.roles.train,
        val_split=recipe.roles.val,
        test_split=recipe.roles.test,
        target_bytes=max(1, int(recipe.shards.target_mb * 1e6)),
        seed=recipe.shards.seed,
        license=data.license,
        check_archives=data.check_archives,
        follow_links=data.follow_links,
    )


def _pairs(scale: Any) -> tuple[tuple[float, float], ...] | None:
    """Turns one pair or several into several."""
    return (scale,) if scale and not isinstance(scale[0], tuple) else scale


def _custom_options(data: DataConfig) -> dict[str, Any]:
    """Turns the section `data.custom` into the options of the source `custom`."""
    custom = data.custom
    if custom is None:
        return {}
    classes = tuple(
        CustomClass(item.name, item.color, item.label_values or (), item.scored) for item in custom.classes
    )
    names = ("images", "masks", "ignored", "unused", "scene", "bands", "band_order", "align")
    rest: dict[str, Any] = {name: getattr(custom, name) for name in names}
    rest["reading"] = Reading(custom.nodata, custom.page)
    rest["area"] = CustomArea(**custom.area.model_dump()) if custom.area else None
    rest["vectors"] = _custom_vectors(custom.vectors) if custom.vectors else None
    split = _custom_split(custom.split)
    return {"spec": CustomSpec(classes=classes, split=split, license=data.license or "unknown", **rest)}


def _custom_split(split: SplitConfig) -> CustomSplit:
    values = split.model_dump()
    values["blocks"] = CustomBlocks(**values["blocks"]) if split.blocks else None
    values["fold"] = CustomFold(**values["fold"]) if split.fold else None
    return CustomSplit(**values)


def _custom_vectors(vectors: VectorsConfig) -> CustomVectors:
    values = vectors.model_dump()
    return CustomVectors(**{**values, "layers": tuple(CustomLayer(**layer) for layer in values["layers"])})


def _runner(recipe: Recipe, no_ray: bool) -> TaskRunner:
    return run_here if no_ray else RayTasks(recipe.cluster, recipe.data.root)

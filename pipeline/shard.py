"""`python -m pipeline.shard RECIPE`: raw data to shards, one Ray task a shard."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2ls import storage
from d2ls.shards import DatasetCard
from pipeline.cli import add_recipe, parser, run_command
from pipeline.config.data import CustomConfig, DataConfig
from pipeline.config.recipe import Recipe, load_recipe
from pipeline.sharding.tasks import each

if TYPE_CHECKING:
    from sharding.validate import Validation

DESCRIPTION = (
    "Cuts a labelled image data set into WebDataset shards with an index and a card, ready for training. "
    "Finished shards are kept: a second call does only what is missing."
)
EXAMPLES = """\
  python -m pipeline.shard loveda data.root=/data/LoveDA          the folder with Train/ and Val/, or their zips
  python -m pipeline.shard loveda data.root=/data/LoveDA --check  read everything, list all problems, write nothing
  python -m pipeline.shard loveda --verify                        read the shards back: checksums, counts, digests
  python -m pipeline.shard loveda --preview-batches seen.png              a picture of what the network is trained on
  python -m pipeline.shard potsdam data.root=/data/Potsdam shards.uri=s3://bucket/potsdam
  python -m pipeline.shard my_recipe.yaml data.codec.compression=zstd shards.target_mb=128
"""

_log = logging.getLogger(__name__)

SHOWN_BATCHES = 4
"""Batches on the picture of `--preview-batches`."""


@dataclass(frozen=True)
class Progress:
    """How far sharding is.

    Attributes:
        shards: finished shards, those of earlier runs included.
        total_shards: of the plan.
        samples: likewise.
        total_samples: of the plan.
        bytes: written by this run.
        seconds: since this run began to write.
    """

    shards: int
    total_shards: int
    samples: int
    total_samples: int
    bytes: int
    seconds: float


def shard_spec(recipe: Recipe) -> Any:
    """Turns the sections `data` and `shards` of a recipe into a `sharding.spec.ShardSpec`."""
    from sharding.codecs import Codec
    from sharding.spec import ShardSpec
    from sharding.tiling import Tiling

    data = recipe.data
    codec = data.codec.model_dump(exclude_none=True)
    tiling = {name: Tiling(t.size, t.stride, t.padding, t.edge) for name, t in data.tiling.items()}
    same = (
        "source",
        "root",
        "protocol",
        "bands",
        "max_value",
        "ground_sampling_distance",
        "splits",
    )
    rest = ("license", "check_archives", "follow_links")
    return ShardSpec(
        name=recipe.name,
        uri=recipe.shards.uri,
        options={**data.options, **_own_data(data)},
        tiling=tiling,
        codec=Codec(**codec),
        scale=_scale(data.scale),
        train_split=recipe.roles.train,
        select_split=recipe.roles.val,
        report_split=recipe.roles.test,
        target_bytes=int(recipe.shards.target_mb * 1e6),
        seed=recipe.shards.seed,
        strays=data.treat_as_ignored,
        **{name: getattr(data, name) for name in (*same, *rest)},
    )


def run(
    recipe: Recipe, *, progress: Callable[[Progress], None] | None = None, inline: bool = False
) -> DatasetCard:
    """Makes the shards of a recipe, or what is missing of them.

    Args:
        recipe: the recipe.
        progress: called after each shard.
        inline: work in this process, without Ray.

    Returns:
        The card of the finished set.

    Raises:
        DataError: the raw data have problems: all that headers show, a class that training never sees, a split without
            labelled pixels; they are listed and nothing is written.
        LabelError: a label image holds an unknown colour or id.
        StorageError: the target cannot be written.
    """
    from sharding.index_writer import finish, finished_card, unfinish
    from sharding.plan import plan_shards
    from sharding.scan import scan
    from sharding.shard_io import only_writer, sweep_leftovers
    from sharding.shard_manifest import finished_manifest
    from sharding.validate import require_teachable
    from sharding.write import write_shard

    spec = shard_spec(recipe)
    found = scan(spec)
    found.require_sound()
    plan = plan_shards(spec, found)
    if (card := finished_card(plan, spec)) is not None:
        return card
    for warning in found.warnings:
        _log.warning("warning: %s", warning)
    require_teachable(found)
    with only_writer(spec.uri):
        if (card := finished_card(plan, spec)) is not None:  # by the command that this one waited for
            return card
        sweep_leftovers(spec.uri)
        todo = [task for task in plan.tasks if finished_manifest(task, spec.uri) is None]
        if todo:
            unfinish(spec.uri)
        done = [len(plan.tasks) - len(todo), plan.samples - sum(task.samples for task in todo), 0]
        started = time.monotonic()
        for part in each(write_shard, todo, spec.uri, recipe, inline):
            done = [done[0] + 1, done[1] + part.shard.samples, done[2] + part.shard.bytes]
            if progress:
                seconds = time.monotonic() - started
                progress(Progress(done[0], len(plan.tasks), done[1], plan.samples, done[2], seconds))
        return finish(plan, spec)


def check(recipe: Recipe, *, inline: bool = False) -> "Validation":
    """Reads every image and label image of a recipe and lists all problems; writes nothing."""
    from sharding.scan import scan
    from sharding.validate import check_scenes, rules, scene_groups, validated

    found = scan(shard_spec(recipe))
    groups = each(check_scenes, scene_groups(found), rules(found), recipe, inline)
    return validated(found, (scene for group in groups for scene in group))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    command = parser("pipeline.shard", DESCRIPTION, EXAMPLES)
    add_recipe(command)
    action = command.add_mutually_exclusive_group()
    action.add_argument(
        "--check", action="store_true", help="read all raw files, list all problems, write nothing"
    )
    action.add_argument("--verify", action="store_true", help="read a finished shard set back and compare")
    action.add_argument(
        "--preview-batches",
        metavar="FILE.png",
        type=Path,
        help="draw the first augmented batches that training takes from a finished shard set, with their labels",
    )
    command.add_argument("--no-ray", action="store_true", help="one process, without Ray")
    options = command.parse_args(arguments)
    recipe = load_recipe(options.recipe, options.overrides)
    if options.check:
        return _check_command(recipe, options.no_ray)
    if options.verify:
        return _verify_command(recipe)
    if options.preview_batches:
        return _batches_command(recipe, options.preview_batches)
    return _shard_command(recipe, options.no_ray)


def _shard_command(recipe: Recipe, inline: bool) -> int:
    from pipeline.console import ProgressDisplay
    from pipeline.sharding.report import print_summary, progress_of

    with ProgressDisplay(f"sharding {recipe.name}") as display:
        card = run(recipe, progress=progress_of(display), inline=inline)
    print_summary(card, recipe.shards.uri)
    return 0


def _check_command(recipe: Recipe, inline: bool) -> int:
    from pipeline.sharding.report import print_validation

    found = check(recipe, inline=inline)
    print_validation(found, recipe.data.root)
    return 1 if found.scan.problems else 0


def _verify_command(recipe: Recipe) -> int:
    from pipeline.sharding.report import print_verified
    from sharding.verify import verify

    print_verified(verify(recipe.shards.uri), recipe.shards.uri)
    return 0


def _batches_command(recipe: Recipe, path: Path) -> int:
    from PIL import Image

    from d2ls.data.preview import batch_sheet
    from d2ls.errors import ConfigError
    from d2ls.shards import ShardSet
    from d2ls.training.process_group import ProcessGroup
    from pipeline.sharding.report import print_batches
    from pipeline.training.build import loaders

    if path.suffix.lower() != ".png" or not path.parent.is_dir():
        raise ConfigError(f"--preview-batches {path}: give the name of a .png file in a folder that exists")
    storage.check_free(path, "name another file after --preview-batches")
    here = recipe.model_copy(update={"loader": recipe.loader.model_copy(update={"workers": 0})})
    shards = ShardSet.open(recipe.shards.uri)
    training = loaders(here, shards, ProcessGroup()).training
    batches = [batch for batch, _ in zip(training.epoch(0), range(SHOWN_BATCHES), strict=False)]
    Image.fromarray(batch_sheet(batches, shards.card.classes)).save(path)
    print_batches(path, len(batches), recipe)
    return 0


def _scale(given: Any) -> tuple[tuple[float, float], ...] | None:
    """Turns one pair or several into several."""
    return (given,) if given and not isinstance(given[0], tuple) else given


def _own_data(data: DataConfig) -> dict[str, Any]:
    """Turns the section `data.custom` into the reader's plain values."""
    from sharding.raster import Reading
    from sharding.sources.own import OwnClass, OwnData, OwnSplit

    custom: CustomConfig | None = data.custom
    if custom is None:
        return {}
    classes = tuple(
        OwnClass(item.name, item.color, item.label_values or (), item.scored) for item in custom.classes
    )
    split = OwnSplit(**custom.split.model_dump())
    names = ("images", "masks", "ignored", "unused", "scene", "bands", "band_order", "align")
    rest: dict[str, Any] = {name: getattr(custom, name) for name in names}
    rest["reading"] = Reading(custom.nodata, custom.page)
    return {"own": OwnData(classes=classes, split=split, license=data.license or "unknown", **rest)}


if __name__ == "__main__":
    run_command(main)

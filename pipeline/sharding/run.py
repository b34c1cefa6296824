"""Shards of a recipe, made or checked on Ray or in this process."""

from collections.abc import Callable

from d2ls.shards import DatasetCard
from pipeline.config.recipe import Recipe
from pipeline.sharding.spec import shard_spec
from pipeline.sharding.tasks import RayTasks
from sharding.make import Progress, make_shards
from sharding.scan import scan
from sharding.tasks import TaskRunner, run_here
from sharding.validate import Validation, validate


def ensure_shards(
    recipe: Recipe, *, progress: Callable[[Progress], None] | None = None, inline: bool = False
) -> DatasetCard:
    """Makes the shards of a recipe, or what is missing of them; returns the card of the finished set.

    Args:
        recipe: the recipe.
        progress: called after each shard.
        inline: work in this process, without Ray.

    Raises:
        DataError, LabelError, StorageError: see `sharding.make.make_shards`.
    """
    return make_shards(shard_spec(recipe), _runner(recipe, inline), progress)


def check_raw_data(recipe: Recipe, *, inline: bool = False) -> Validation:
    """Reads every image and label image of a recipe and lists all problems; writes nothing.

    Args:
        recipe: the recipe.
        inline: work in this process, without Ray.
    """
    return validate(scan(shard_spec(recipe)), _runner(recipe, inline))


def _runner(recipe: Recipe, inline: bool) -> TaskRunner:
    return run_here if inline else RayTasks(recipe.cluster, recipe.data.root)

"""Registers a trained model and decides whether it becomes champion."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from d2ls.shards import DatasetCard
    from pipeline.config import Recipe
    from pipeline.config.train import ClusterConfig
    from pipeline.evaluation.result import Evaluation
    from pipeline.tracking import ModelVersion, Store
    from pipeline.training.run import TrainResult


def register_and_promote(
    store: "Store",
    trained: "TrainResult",
    evaluation: "Evaluation",
    recipe: "Recipe",
    card: "DatasetCard",
    console: "Console",
    *,
    cluster: "ClusterConfig | None" = None,
) -> "ModelVersion":
    """Registers the selected checkpoint as challenger; makes it champion where the recipe says so and it is better.

    The present champion is scored again on the same report data, so that both scores mean the same; on the Ray workers
    of `cluster`, or in this process.

    Returns:
        The registered version, with its aliases.
    """
    from pipeline.promote import decide
    from pipeline.tracking.connection import patiently
    from pipeline.training.tracked_run import PATIENCE

    def register() -> "ModelVersion":
        return store.register(
            trained.run_id,
            trained.best_checkpoint,
            recipe.model_name,
            card=card,
            evaluation=evaluation.to_dict(),
            recipe=recipe,
        )

    version = patiently(register, PATIENCE)
    console.print(f"  {version.uri} registered, alias challenger")
    if recipe.registry.promote == "never":
        console.print(
            f"  not promoted (registry.promote: never); python -m pipeline.promote {recipe.model_name}"
        )
        return version
    version, reason = decide(store, version, evaluation, recipe, cluster=cluster)
    console.print(f"  {'champion' if 'champion' in version.aliases else 'not champion'}: {reason}")
    return version

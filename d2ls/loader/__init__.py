"""Exact, elastic, resumable epochs over WebDataset shards: plan, reading, augmentation, batches.

    from d2ls.loader import Augmentation, TrainingLoader, evaluation_loader

`d2ls.loader.plan` and `d2ls.loader.weighting` need no torch: names below are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from d2ls.loader.plan import EpochPlan, epoch_plan, rank_lanes, steps_per_epoch

if TYPE_CHECKING:
    from d2ls.loader.augment import Augmentation
    from d2ls.loader.batches import Batch
    from d2ls.loader.cache import CacheConfig
    from d2ls.loader.evaluation import EvaluationLoader, evaluation_loader
    from d2ls.loader.training import EpochBatches, TrainingLoader, training_loader

__all__ = [
    "Augmentation",
    "Batch",
    "CacheConfig",
    "EpochBatches",
    "EpochPlan",
    "EvaluationLoader",
    "TrainingLoader",
    "epoch_plan",
    "evaluation_loader",
    "rank_lanes",
    "steps_per_epoch",
    "training_loader",
]

_HOMES = {
    "Augmentation": "augment",
    "Batch": "batches",
    "CacheConfig": "cache",
    "EpochBatches": "training",
    "EvaluationLoader": "evaluation",
    "TrainingLoader": "training",
    "evaluation_loader": "evaluation",
    "training_loader": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

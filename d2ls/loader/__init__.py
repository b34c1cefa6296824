"""Exact, elastic, resumable epochs over WebDataset shards: plan, reading, augmentation, batches.

    from d2ls.loader import Augmentation, EvaluationLoader, TrainingLoader

`d2ls.loader.plan` and `d2ls.loader.weighting` need no torch: names below are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from d2ls.loader.plan import EpochPlan, epoch_plan, rank_lanes, steps_per_epoch

if TYPE_CHECKING:
    from d2ls.loader.augment import Augmentation
    from d2ls.loader.batches import Batch
    from d2ls.loader.cache import CacheConfig
    from d2ls.loader.evaluation import EvaluationLoader
    from d2ls.loader.training import EpochBatches, TrainingLoader

__all__ = [
    "Augmentation",
    "Batch",
    "CacheConfig",
    "EpochBatches",
    "EpochPlan",
    "EvaluationLoader",
    "TrainingLoader",
    "epoch_plan",
    "rank_lanes",
    "steps_per_epoch",
]

_HOMES = {
    "Augmentation": "augment",
    "Batch": "batches",
    "CacheConfig": "cache",
    "EpochBatches": "training",
    "EvaluationLoader": "evaluation",
    "TrainingLoader": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

"""Exact, elastic, resumable epochs over WebDataset shards: plan, reading, augmentation, batches.

    from d2ls.data import Augmentation, EvaluationLoader, TrainingLoader

`d2ls.data.sampler` and `d2ls.data.weighting` need no torch: names below are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from d2ls.data.sampler import EpochPlan, epoch_plan, rank_lanes, steps_per_epoch

if TYPE_CHECKING:
    from d2ls.data.cache import CacheConfig
    from d2ls.data.collate import Batch
    from d2ls.data.evaluation import EvaluationLoader, evaluation_window
    from d2ls.data.loader import EpochBatches, TrainingLoader
    from d2ls.data.transforms import Augmentation

__all__ = [
    "Augmentation",
    "Batch",
    "CacheConfig",
    "EpochBatches",
    "EpochPlan",
    "EvaluationLoader",
    "TrainingLoader",
    "epoch_plan",
    "evaluation_window",
    "rank_lanes",
    "steps_per_epoch",
]

_HOMES = {
    "Augmentation": "transforms",
    "Batch": "collate",
    "CacheConfig": "cache",
    "EpochBatches": "loader",
    "EvaluationLoader": "evaluation",
    "TrainingLoader": "loader",
    "evaluation_window": "evaluation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

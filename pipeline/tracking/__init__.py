"""Runs, figures and registered models in MLflow. No other package of the project imports mlflow.

store = Store.open(recipe.tracking)                      # once, before any fan-out
run_id = store.start_run(recipe, card, name)             # the run folder keeps it: pipeline/training/tracked_run.py
callback = TrackingCallback(store.uri, run_id, folder, recipe, shards)   # on rank 0
version = store.register(run_id, checkpoint, "d2ls-demo", card=card, evaluation=None, recipe=recipe)
store.promote("d2ls-demo", version.version, "because")

MLflow itself is imported on first use, so importing this package is quick.
"""

from typing import TYPE_CHECKING, Any

from pipeline.registry.versions import CHALLENGER, CHAMPION, ModelVersion, should_promote
from pipeline.tracking.runs import RunRow
from pipeline.tracking.store import Store
from pipeline.tracking.writer import RunWriter

if TYPE_CHECKING:
    from pipeline.tracking.callback import TrackingCallback

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "ModelVersion",
    "RunRow",
    "RunWriter",
    "Store",
    "TrackingCallback",
    "should_promote",
]


def __getattr__(name: str) -> Any:
    if name == "TrackingCallback":  # it needs PyTorch
        from pipeline.tracking.callback import TrackingCallback

        return TrackingCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Runs and figures in MLflow. Registered models are in pipeline/registry; nothing else imports mlflow.

store = Store.open(recipe.tracking)                      # once, before other processes start
run_id = store.start_run(recipe, card, name)             # the run folder keeps it: pipeline/training/tracked_run.py
callback = TrackingCallback(store.uri, run_id, folder, recipe, shards)   # on rank 0; pipeline/tracking/callback.py
store.end_run(run_id)

MLflow itself is imported on first use, so importing this package is quick.
"""

from pipeline.tracking.runs import RunRow
from pipeline.tracking.store import Store
from pipeline.tracking.writer import RunWriter

__all__ = ["RunRow", "RunWriter", "Store"]

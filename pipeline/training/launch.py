"""Starts the workers of a training: one in the calling process, or a group of them on Ray."""

import logging
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from d2ls import errors
from d2ls.errors import D2LSError, StorageError, TrainingError
from d2ls.scratch import scratch_folder
from pipeline.training import worker
from pipeline.training.run_folder import RunFolder
from pipeline.training.worker import Job

if TYPE_CHECKING:
    from pipeline.cluster import Cluster
    from pipeline.config import Recipe

HEAD = {"node:__internal_head__": 0.001}
"""Keeps the process that waits for the group on the head node; takes no CPU."""

ABORT_SECONDS = 30.0
_log = logging.getLogger(__name__)


def train_in_process(job: Job, *, max_failures: int) -> Generator[dict[str, float]]:
    """Trains in the calling process, without Ray; yields the metrics of each new epoch.

    Closing the iterator stops the training after that epoch and frees what it holds. After a storage error or an error
    of a library the training starts again from its newest checkpoint. Other errors of this project would come again, so
    they are raised at once. If the process itself ends, the user goes on with `--resume`.

    Args:
        job: what to train.
        max_failures: how often to try again.

    Raises:
        D2LSError: the training cannot go on.
    """
    last_step, failures, training = 0.0, 0, worker.epochs(job)
    try:
        while True:
            try:
                metrics = next(training)
            except StopIteration:
                return
            except Exception as error:
                failures += 1
                ours = isinstance(error, D2LSError)
                if ours and (failures > max_failures or not isinstance(error, StorageError)):
                    raise
                reason = f"{type(error).__name__}: {error}"
                if failures > max_failures:
                    raise TrainingError(_gave_up(job.name, failures, reason)) from error
                _log.warning("run %s, failure %d of at most %d: %s", job.name, failures, max_failures, reason)
                training = worker.epochs(job)
                continue
            if metrics["step"] > last_step:
                last_step = metrics["step"]
                yield metrics
    finally:
        training.close()


def train_on_ray(
    job: Job, recipe: "Recipe", cluster: "Cluster", folder: RunFolder
) -> Generator[dict[str, float]]:
    """Trains on a Ray Train worker group; yields the metrics of each new epoch, which rank 0 writes to the run folder.

    `fit` runs in a Ray task. Whatever closes this iterator (Ctrl-C, a pruned trial) cancels the task, and Ray then
    shuts the group down in order.

    Raises:
        D2LSError: the error that ended the workers.
    """
    import ray

    folder.clear_failure()
    last_step = max((row["step"] for row in folder.epochs()), default=0.0)
    # Outside the placement group of a trial: that one holds only what the trial's own process needs.
    fit = ray.remote(num_cpus=0, resources=HEAD, max_retries=0, scheduling_strategy="DEFAULT")(_fit)
    answer = fit.remote(job.to_config(), _scaling(recipe, cluster), recipe.cluster.max_failures)
    running = True
    try:
        while running:
            running = not ray.wait([answer], timeout=folder.poll_seconds)[0]
            for row in _epochs_after(folder, last_step):
                last_step = row["step"]
                yield row
        try:
            problem = ray.get(answer)
        except (ray.exceptions.OutOfMemoryError, ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError,
                ray.exceptions.ObjectLostError) as error:  # fmt: skip
            raise TrainingError(
                f"run {folder.name}: the process that leads its workers has ended: {str(error).splitlines()[0]}. Go on "
                f"from the newest checkpoint with --resume {folder.name}"
            ) from error
    finally:
        if running:
            ray.cancel(answer)
            if not ray.wait([answer], timeout=ABORT_SECONDS)[0]:
                ray.cancel(answer, force=True)
    failure = folder.failure()
    if failure is not None:
        raise getattr(errors, failure["type"], TrainingError)(failure["message"])
    if problem:
        raise TrainingError(_gave_up(folder.name, recipe.cluster.max_failures + 1, problem))


def _gave_up(name: str, failures: int, reason: str) -> str:
    return f"run {name} failed {failures} time(s): {reason}. Go on from its newest checkpoint with --resume {name}"


def _epochs_after(folder: RunFolder, step: float) -> list[dict[str, float]]:
    """Returns the new epochs; none if the folder cannot be read now, the next call returns them."""
    try:
        return [row for row in folder.epochs() if row["step"] > step]
    except (StorageError, ValueError):
        return []


def _scaling(recipe: "Recipe", cluster: "Cluster") -> dict[str, Any]:
    low, high = recipe.cluster.worker_range
    return {
        "num_workers": high if low == high else (low, high),
        "use_gpu": cluster.use_gpu(recipe.cluster),
        "resources_per_worker": cluster.per_worker(recipe.cluster),
    }


def _fit(job: dict[str, Any], scaling: dict[str, Any], max_failures: int) -> str | None:
    """Runs a worker group to its end, in a Ray task; returns the workers' error messages if it failed."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    with scratch_folder("train") as scratch:
        # Ray stores nothing of value here: the checkpoints are in the run folder.
        config = RunConfig(
            name=job["name"],
            storage_path=str(scratch),
            failure_config=FailureConfig(max_failures=max_failures),
        )
        trainer = TorchTrainer(
            worker.run_worker,
            train_loop_config=job,
            scaling_config=ScalingConfig(**scaling),
            run_config=config,
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            causes = getattr(error, "worker_failures", {}) or {}
            lines = [
                f"worker {rank}: {str(cause).strip().splitlines()[-1]}"
                for rank, cause in sorted(causes.items())
            ]
            return "; ".join(lines) or str(error)
    return None

"""Training on a Ray Train worker group."""

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from d2ls import errors, storage
from d2ls.errors import StorageError, TrainingError
from d2ls.scratch import scratch_folder
from pipeline.training.run_folder import RunFolder

if TYPE_CHECKING:
    from pipeline.cluster import Cluster
    from pipeline.config import Recipe
    from pipeline.training.worker import Job

HEAD = {"node:__internal_head__": 0.001}
"""Keeps the process that waits for the group on the head node; takes no CPU."""

LOOK_SECONDS, LOOK_SECONDS_REMOTE = 0.3, 5.0
"""Time between two looks into the run folder, on a local disk and in an object store."""

ABORT_SECONDS = 30.0


def epochs(
    job: "Job", recipe: "Recipe", cluster: "Cluster", folder: RunFolder
) -> Generator[dict[str, float]]:
    """Trains on a worker group and yields the metrics of each new epoch, as rank 0 writes them into the run folder.

    `fit` runs in a Ray task: cancelling that is how Ray lets go of a group in good order, whoever ends this iterator
    (Ctrl-C, a pruned trial).

    Raises:
        D2LSError: the error that ended the workers.
    """
    import ray

    folder.clear_failure()
    told = max((row["epoch"] for row in folder.epochs()), default=0.0)
    # Not inside the placement group of a trial, which holds what the trial's own process takes and nothing more.
    fit = ray.remote(num_cpus=0, resources=HEAD, max_retries=0, scheduling_strategy="DEFAULT")(_fit)
    answer = fit.remote(job.to_config(), _scaling(recipe, cluster), recipe.cluster.max_failures)
    pause = LOOK_SECONDS if storage.is_local(folder.uri) else LOOK_SECONDS_REMOTE
    running = True
    try:
        while running:
            running = not ray.wait([answer], timeout=pause)[0]
            for row in _epochs_after(folder, told):
                told = row["epoch"]
                yield row
        problem = ray.get(answer)
    finally:
        if running:
            ray.cancel(answer)
            if not ray.wait([answer], timeout=ABORT_SECONDS)[0]:
                ray.cancel(answer, force=True)
    failure = folder.failure()
    if failure is not None:
        raise getattr(errors, failure["type"], TrainingError)(failure["message"])
    if problem:
        raise TrainingError(
            f"run {folder.name} failed {recipe.cluster.max_failures + 1} time(s): {problem}. "
            f"Go on from its newest checkpoint with --resume {folder.name}"
        )


def _epochs_after(folder: RunFolder, epoch: float) -> list[dict[str, float]]:
    """Reads the epochs that are new; none where the folder cannot be read now, the next look will find them."""
    try:
        return [row for row in folder.epochs() if row["epoch"] > epoch]
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
    """Runs a worker group to its end, in a Ray task; returns why it failed, in the workers' own words."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    from pipeline.training.worker import run_worker

    with scratch_folder("train") as scratch:
        # Ray keeps nothing of value there: checkpoints are ours, in the run folder.
        config = RunConfig(
            name=job["name"],
            storage_path=str(scratch),
            failure_config=FailureConfig(max_failures=max_failures),
        )
        trainer = TorchTrainer(
            run_worker, train_loop_config=job, scaling_config=ScalingConfig(**scaling), run_config=config
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

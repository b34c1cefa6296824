"""Trains as one rank: builds everything from the recipe and runs the loop, in this process or as a Ray Train worker.

A job holds plain values only, so that the driver and Ray's controller do not import PyTorch. For the same reason the
imports of what trains stand inside the functions.
"""

import logging
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from d2ls.errors import D2LSError, NonFiniteLossError, StorageError
from pipeline.training.run_folder import RunFolder

if TYPE_CHECKING:
    import torch

    from d2ls.shards import ShardSet
    from d2ls.training.callbacks import Callback
    from pipeline.config import Recipe


@dataclass(frozen=True)
class Job:
    """What to train: plain values that travel to the workers.

    Attributes:
        recipe: the resolved recipe, as plain values.
        folder: absolute location of the run folder.
        name: name of the run.
        shards: absolute location of the shards.
        store: MLflow store; empty: no tracking.
        run_id: MLflow run.
        cpus: CPUs of a worker.
        gpu: use a GPU if there is one.
        profile: write a trace of some steps of rank 0 into the run folder.
    """

    recipe: Mapping[str, Any]
    folder: str
    name: str
    shards: str
    store: str = ""
    run_id: str = ""
    cpus: float = 1.0
    gpu: bool = True
    profile: bool = False

    def to_config(self) -> dict[str, Any]:
        """Returns the job as a dictionary, for Ray Train."""
        return asdict(self)


def run_worker(config: dict[str, Any]) -> None:
    """Trains as one rank of a Ray Train worker group; every rank reports every epoch to Ray.

    An error that trying again does not fix is recorded in the run folder and raised. Ray then ends the other ranks,
    which may be waiting for this one in a collective operation, and starts a new group. That group finds the recorded
    error and returns at once, and the driver raises the error. After any other error (a lost rank, an object store that
    does not answer) nothing is recorded, and the new group continues from the newest checkpoint.
    """
    from ray import train

    job = Job(**config)
    folder = RunFolder(job.folder, job.name)
    if folder.failure() is not None:
        return
    try:
        for metrics in epochs(job):
            train.report(metrics)
    except StorageError:
        raise
    except D2LSError as error:
        logging.getLogger(__name__).error("%s", error)
        folder.fail(error)
        if not _raised_by_all(error):
            raise


def _raised_by_all(error: D2LSError) -> bool:
    """Returns whether no other rank is left waiting: all ranks raise this error, or there is only one."""
    import torch.distributed as dist

    alone = not dist.is_initialized() or dist.get_world_size() == 1
    return alone or isinstance(error, NonFiniteLossError)


def epochs(job: Job) -> Generator[dict[str, float]]:
    """Builds everything and trains as one rank in this process; yields the metrics of each epoch.

    Closing the iterator stops the training after that epoch and ends all its threads and processes.
    """
    from d2ls.shards import ShardSet
    from d2ls.training.callbacks import close_all
    from d2ls.training.process_group import ProcessGroup
    from pipeline.config import parse_recipe
    from pipeline.training import build

    recipe = parse_recipe(job.recipe)
    build.use_threads(job.cpus)
    group = ProcessGroup.current(_device(job.gpu))
    shards = ShardSet.open(job.shards)
    loaders = build.loaders(recipe, shards, group)
    callbacks = _callbacks(job, recipe, shards) if group.is_main else []
    try:
        try:
            trainer = build.trainer(
                recipe, shards, group, loaders, checkpoints=RunFolder(job.folder, job.name).checkpoints,
                callbacks=callbacks, run=job.name, store=job.store,
            )  # fmt: skip
        except BaseException:  # later the trainer closes them; their threads would log on for ever
            close_all([callback.close for callback in callbacks], failed=True)
            raise
        yield from trainer.epochs()
    finally:
        loaders.close()
        if group.is_main and job.store:
            RunFolder(job.folder, job.name).keep_queue()


def _callbacks(job: Job, recipe: "Recipe", shards: "ShardSet") -> "list[Callback]":
    """Returns the callbacks of rank 0."""
    from pipeline.training.progress import ProgressWriter

    folder = RunFolder(job.folder, job.name)
    callbacks: list[Callback] = []
    if job.store:
        from pipeline.tracking.callback import TrackingCallback

        started = folder.metadata().get("created")
        callbacks.append(TrackingCallback(job.store, job.run_id, folder.spool, recipe, shards, started))
    if job.profile:
        from d2ls.training.profiler import ProfileCallback

        callbacks.append(ProfileCallback(folder.profile))
    return [*callbacks, ProgressWriter(folder)]


def _device(gpu: bool) -> "torch.device":
    import torch

    if not gpu or not torch.cuda.is_available():
        return torch.device("cpu")
    if not torch.distributed.is_initialized():
        return torch.device("cuda", 0)  # the one that Ray, or CUDA_VISIBLE_DEVICES, gave this process
    from ray.train.torch import get_device

    device: torch.device = get_device()
    return device

"""What a Ray Train worker runs: builds from the recipe, trains, tells the driver.

The driver sends plain values alone, so that the controller and the cluster never import PyTorch for this project.
"""

import hashlib
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2ls import storage
from d2ls.errors import D2LSError, NonFiniteLossError, StorageError
from d2ls.training.reports import Callback
from pipeline.training.run_folder import RunFolder

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Job:
    """What a worker is sent.

    Attributes:
        recipe: the resolved recipe, as plain values.
        folder: absolute location of the run folder.
        name: name of the run.
        shards: absolute location of the shards.
        store: MLflow store; empty: nothing is tracked.
        run_id: MLflow run.
        cpus: CPUs of a worker.
        profile: write a trace of some steps of rank 0 into the run folder.
    """

    recipe: Mapping[str, Any]
    folder: str
    name: str
    shards: str
    store: str = ""
    run_id: str = ""
    cpus: float = 1.0
    profile: bool = False

    def to_config(self) -> dict[str, Any]:
        """Returns plain values for Ray Train."""
        return asdict(self)


def spool_folder(folder: str) -> str:
    """Returns the local folder where metrics wait for MLflow: in the run folder, or beside it for an object store."""
    if storage.is_local(folder):
        return storage.join(folder, "spool")
    digest = hashlib.sha256(folder.encode()).hexdigest()[:16]
    return str(Path(tempfile.gettempdir()) / f"d2ls-spool-{digest}")


class RayReport(Callback):
    """Tells Ray Train of every epoch; all ranks do, Ray keeps rank 0's numbers."""

    def on_epoch(self, metrics: Mapping[str, float]) -> None:
        """Reports, and waits until all ranks have."""
        from ray import train

        train.report(dict(metrics))


def run_worker(config: dict[str, Any]) -> None:
    """Trains as one rank of a worker group.

    An error that trying again does not mend is noted in the run folder. Raising it makes Ray end the peers, which may
    be waiting for this rank in a collective; the group that Ray then starts finds the note and returns at once, and the
    driver raises the error. Others (a lost peer, a full object store) have no note, and the next group goes on from our
    newest checkpoint.
    """
    job = Job(**config)
    folder = RunFolder(job.folder, job.name)
    if folder.failure() is not None:
        return
    try:
        _train(job, folder)
    except StorageError:
        raise
    except D2LSError as error:
        logging.getLogger(__name__).error("%s", error)
        folder.fail(error)
        if not _heard_by_all(error):
            raise


def _heard_by_all(error: D2LSError) -> bool:
    """Says whether no peer is left waiting: all raise the same error, or there is none."""
    import torch.distributed as dist

    alone = not dist.is_initialized() or dist.get_world_size() == 1
    return alone or isinstance(error, NonFiniteLossError)


def _train(job: Job, folder: RunFolder) -> None:
    from d2ls.shards import ShardSet
    from d2ls.training.ranks import Ranks
    from pipeline.config import parse_recipe
    from pipeline.training import build

    recipe = parse_recipe(job.recipe)
    build.use_threads(job.cpus)
    ranks = Ranks.current(_device())
    shards = ShardSet.open(job.shards)
    loaders = build.loaders(recipe, shards, ranks)
    callbacks = _callbacks(job, folder, recipe, shards) if ranks.first else [RayReport()]
    try:
        build.trainer(
            recipe, shards, ranks, loaders, checkpoints=folder.checkpoints, callbacks=callbacks, run=job.name,
            store=job.store,
        ).run()  # fmt: skip
    finally:
        loaders.close()


def _callbacks(job: Job, folder: RunFolder, recipe: Any, shards: Any) -> "list[Callback]":
    """Callbacks of rank 0."""
    from pipeline.training.progress import ProgressWriter

    callbacks: list[Callback] = []
    if job.store:
        from pipeline.tracking import TrackingCallback

        started = folder.facts().get("created")
        callbacks.append(TrackingCallback(job.store, job.run_id, folder.spool, recipe, shards, started))
    if job.profile:
        from d2ls.training.profiling import ProfileCallback

        callbacks.append(ProfileCallback(folder.profile))
    return [*callbacks, ProgressWriter(folder), RayReport()]


def _device() -> "torch.device":
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    from ray.train.torch import get_device

    device: torch.device = get_device()
    return device

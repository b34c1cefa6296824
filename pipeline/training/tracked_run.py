"""The MLflow run of a training, a trial or a sweep: found by the id in its run folder, ended as the folder records.

The run folder is the source of truth. run.json holds the id of the MLflow run, how the training ended (`state`), and
the status that MLflow has received (`mlflow_status`). The queue beside it holds what the server has not received. If a
server or a process fails, `settle` completes the run later.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from d2ls import storage
from d2ls.errors import CheckpointError, ConfigError, StorageError
from pipeline import process_identity
from pipeline.tracking.connection import shown
from pipeline.training.run_folder import FAILED, FINISHED, KILLED, PRUNED, RUNNING, RunFolder, run_folders

if TYPE_CHECKING:
    from d2ls.shards import DatasetCard
    from pipeline.config import Recipe
    from pipeline.tracking import Store

LOG = logging.getLogger(__name__)
Kind = Literal["sweep", "trial", "training"]
STATUS: dict[str, Literal["FINISHED", "FAILED", "KILLED"]] = {
    FINISHED: "FINISHED",
    FAILED: "FAILED",
    KILLED: "KILLED",
    PRUNED: "KILLED",
}


@contextmanager
def tracked_run(
    recipe: "Recipe", card: "DatasetCard", folder: RunFolder, kind: Kind, parent_run_id: str | None = None
) -> Iterator[tuple[str, str]]:
    """Opens the MLflow run of a folder, and ends folder and run in the right state; yields store and run id.

    Args:
        recipe: the resolved recipe.
        card: card of the shards.
        folder: the run folder; if it has an MLflow run, that one is resumed.
        kind: what kind of run it is.
        parent_run_id: run of the sweep that this is a trial of.

    Raises:
        TrackingError: the store does not answer, or the folder's run belongs to another training.
        ConfigError: the folder is a copy of another one with the same run.
    """
    from pipeline.tracking import Store, connection

    def open_store_and_run() -> "tuple[Store, str]":
        store = Store.open(recipe.tracking)
        return store, open_run(store, recipe, card, folder, kind, parent_run_id)

    with ended(folder):
        patience = connection.PATIENCE if parent_run_id else 0.0
        store, run_id = connection.patiently(open_store_and_run, patience)
    try:
        with ended(folder, last=True):
            yield store.uri, run_id
    finally:
        try:
            settle(store, folder)
        except Exception as error:  # the training itself succeeded, or raises an error of its own
            LOG.warning(
                "%s. The entries stay in %s: `python -m pipeline.doctor RECIPE` sends it and closes the run",
                error, folder.uri,
            )  # fmt: skip


def open_run(
    store: "Store",
    recipe: "Recipe",
    card: "DatasetCard",
    folder: RunFolder,
    kind: Kind,
    parent_run_id: str | None = None,
) -> str:
    """Opens a new MLflow run, or resumes the one that the folder names; returns its id."""
    metadata = folder.metadata()
    run_id, before = metadata.get("run_id", ""), metadata.get("folder", folder.uri)
    parent = parent_run_id or ""
    if run_id:
        _refuse_copy(folder, before, run_id)
        store.resume_run(
            run_id, recipe, card, folder.name, folder=folder.uri, folder_before=before,
            store_before=metadata.get("store", ""), parent_run_id=parent,
        )  # fmt: skip
        folder.update(mlflow_status=None)
    else:
        run_id = store.start_run(
            recipe, card, folder.name, kind, folder=folder.uri, parent_run_id=parent,
            keep=lambda new: folder.update(run_id=new, mlflow_status=None),
        )  # fmt: skip
    opener = metadata.get("driver") or process_identity.this_process()  # until `claim` replaces it
    folder.update(store=shown(store.uri), folder=folder.uri, driver=opener)
    return run_id


def settle(store: "Store", folder: RunFolder) -> int:
    """Sends the queue of a folder, and ends its MLflow run as the folder ended; returns the number of entries sent.

    Raises:
        TrackingError: the store does not accept them; nothing is lost.
    """
    metadata = folder.metadata()
    run_id, status = metadata.get("run_id"), STATUS.get(metadata.get("state", ""))
    if not run_id:
        return 0
    kept = folder.kept_queue()
    here = shown(store.uri)
    if kept or shown(metadata.get("store", here)) != here:
        store.run(run_id)  # a store without the run would refuse the entries for good
    if kept:
        folder.fetch_queue(kept)
    sent = store.send_spooled(folder.spool)
    if status and metadata.get("mlflow_status") != status:
        store.end_run(run_id, status, reason=metadata.get("reason", ""), end_time=metadata.get("ended"))
        folder.update(mlflow_status=status)
    return sent


def unsettled(storage_uri: str) -> Iterator[RunFolder]:
    """Yields the run folders of which MLflow has not received everything, also those of dead processes.

    A folder whose state is `running` but whose process has ended is marked as killed first.
    """
    for folder in run_folders(storage_uri):
        with suppress(CheckpointError, StorageError):  # not readable; the run itself reports it
            metadata = folder.metadata()
            owner = metadata.get("driver", "")
            if metadata.get("state", RUNNING) == RUNNING and process_identity.is_gone(owner):
                folder.end(KILLED, f"its process {process_identity.process_id(owner)} has ended")
                metadata = folder.metadata()
            if not metadata.get("run_id") or metadata.get("state", RUNNING) == RUNNING:
                continue
            if folder.waiting() or metadata.get("mlflow_status") != STATUS.get(metadata.get("state", "")):
                yield folder


@contextmanager
def ended(folder: RunFolder, *, last: bool = False) -> Iterator[None]:
    """Records in the run folder how the run ended; without `last` only a failure."""
    try:
        yield
    except BaseException as error:
        state = FAILED if isinstance(error, Exception) else KILLED
        with suppress(StorageError):  # a full disk may be what ended it
            folder.end(state)
        raise
    if last:
        folder.end(FINISHED, folder.latest().get("ended_early", ""))


def _refuse_copy(folder: RunFolder, before: str, run_id: str) -> None:
    """Refuses a copied folder: two trainings would write into one MLflow run. A moved folder is fine."""
    same = storage.is_local(before) and Path(before).resolve() == Path(folder.uri).resolve()  # through a link
    if (
        before != folder.uri
        and not same
        and RunFolder(before, folder.name).metadata().get("run_id") == run_id
    ):
        raise ConfigError(
            f"{folder.uri} is a copy of {before}, and both name the MLflow run {run_id}. Go on in {before}, or take "
            f"`run_id` out of {folder.uri}/run.json to log to a new run"
        )

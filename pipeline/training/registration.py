"""Registers the model of a run folder: finds the folder, its checkpoint and its MLflow run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from d2ls import storage
from d2ls.errors import ConfigError, TrackingError
from d2ls.shards import ShardSet
from d2ls.training.checkpoint_files import complete_checkpoints
from pipeline.config.tracking import TrackingConfig
from pipeline.registry import ModelVersion, register_checkpoint
from pipeline.tracking import Store, connection
from pipeline.training import tracked_run
from pipeline.training.run_folder import RunFolder, absolute, default_storage, run_folders

if TYPE_CHECKING:
    from pipeline.config import Recipe


@dataclass(frozen=True)
class RegisterRequest:
    """What to register, and where.

    Attributes:
        tracking_uri: MLflow store; None: the one that the run was logged to.
        name: registered model; None takes the name in the run's recipe.
        checkpoint: `best`, `last`, or the location of a folder with a model of this run.
    """

    tracking_uri: str | None = None
    name: str | None = None
    checkpoint: str = "best"


def register_run(
    folder: RunFolder, request: RegisterRequest, evaluate: Callable[[str], Mapping[str, Any]] | None
) -> ModelVersion:
    """Registers the model of a run folder as challenger.

    Args:
        folder: weights, recipe and the id of the MLflow run come from it.
        request: checkpoint, name, store.
        evaluate: evaluates a checkpoint on the test split; None: registered without an evaluation.

    Raises:
        TrackingError: the run left no checkpoint, or what lies there does not belong together.
    """
    metadata, recipe = folder.metadata(), folder.recipe()
    store = _open_store(metadata, recipe, request.tracking_uri)
    card = ShardSet.open(recipe.shards.uri).card
    run_id = metadata.get("run_id", "")
    if run_id:
        store.verify_run(
            run_id, recipe, folder.name,
            folder=folder.uri, folder_before=metadata.get("folder", ""), store_before=metadata.get("store", ""),
        )  # fmt: skip
    checkpoint, step = _find_checkpoint(folder, request.checkpoint)
    evaluation = evaluate(checkpoint) if evaluate else None
    if not run_id:  # not tracked, or its run was deleted for good
        run_id = tracked_run.open_run(store, recipe, card, folder, "training")
        tracked_run.settle(store, folder)
    name = request.name or recipe.model_name
    return register_checkpoint(
        store, run_id, checkpoint, name, card=card, evaluation=evaluation, recipe=recipe, step=step
    )


def find_run(run: str, storage_uri: str | None = None) -> RunFolder:
    """Returns the folder of a run, named by its location, or by name or MLflow id below a storage.

    Raises:
        ConfigError: there is none; names the newest.
    """
    root = absolute(storage_uri or default_storage())
    for uri in (absolute(run), storage.join(root, run)):
        if storage.exists(storage.join(uri, "run.json")):
            return RunFolder(uri, uri.rstrip("/").rsplit("/", 1)[-1])
    known = {folder.name: folder.metadata() for folder in run_folders(root)}
    for name, metadata in known.items():
        if metadata.get("run_id") == run:
            return RunFolder(storage.join(root, name), name)
    newest = sorted(known, key=lambda name: known[name].get("created", 0.0), reverse=True)[:5]
    raise ConfigError(
        f"no run {run!r} below {root}. Newest runs there: {', '.join(newest) or 'none'}. Name the run folder, or the "
        "folder that holds it: --output-dir FOLDER"
    )


def _open_store(metadata: Mapping[str, Any], recipe: "Recipe", uri: str | None) -> Store:
    """Opens the store that a run was logged to."""
    store = metadata.get("store")
    uri = uri or (store if recipe.tracking.uri else connection.found_again(store))
    file = connection.sqlite_file(uri or "")
    if file is not None and not file.is_file() and uri == metadata.get("store"):
        uri = recipe.tracking.uri  # the project was moved: as for a new run
    return Store.open(TrackingConfig(uri=uri), create=False)


def _find_checkpoint(folder: RunFolder, which: str) -> tuple[str, int]:
    """Returns location and optimizer step of a checkpoint of a run; step 0 where it is not known."""
    if which not in ("best", "last"):
        return which, 0
    best = folder.best() if which == "best" else None
    if best:
        return str(best["uri"]), int(best.get("step", 0))
    checkpoints = complete_checkpoints(folder.checkpoints)
    if not checkpoints:
        raise TrackingError(
            f"run {folder.name}: no complete checkpoint in {folder.checkpoints}. Did it end its first epoch? Continue "
            f"it with `python -m pipeline.train --resume {folder.name}`, or name one: --checkpoint FOLDER (a sweep has "
            "none: register one of its trials)"
        )
    return checkpoints[-1].uri, checkpoints[-1].step

"""Opening a run, once: tags, description, parameters, recipe, data set; a resumed training finds its run by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2ls import storage
from d2ls.errors import TrackingError
from pipeline import driver
from pipeline.tracking import facts, finding, location, view
from pipeline.tracking.finding import DRIVER_TAG
from pipeline.tracking.rows import NAME_TAG, dataset_input

if TYPE_CHECKING:
    from d2ls.shards import DatasetCard
    from pipeline.config import Recipe
    from pipeline.tracking.store import Store

PARAMETERS_TAG = "d2ls.parameters"
FOLDER_TAG = "d2ls.run_folder"


def start(
    store: "Store", recipe: "Recipe", card: "DatasetCard", name: str, kind: str, extra: Mapping[str, str]
) -> str:
    """Opens a run, or finds it again by its name; returns its id.

    Args:
        store: where.
        recipe: the resolved recipe.
        card: card of the shards.
        name: unique in the experiment.
        kind: `sweep`, `trial` or `training`.
        extra: further tags; the run folder among them is written as `shown_folder` says.
    """
    experiment = experiment_id(store, recipe.experiment)
    alive = {DRIVER_TAG: driver.this_process(), **extra}
    if FOLDER_TAG in alive:
        alive[FOLDER_TAG] = shown_folder(store.uri, alive[FOLDER_TAG])
    with location.named(store.uri, run=name):
        found = finding.by_name(store, name, [experiment])
        if found:
            run_id = found[0].run_id
            store.client.update_run(run_id, status="RUNNING")
            store.set_tags(run_id, alive)
        else:
            tags = {
                **facts.run_tags(recipe, card, kind),
                "mlflow.note.content": facts.description(recipe, card, kind),
                NAME_TAG: name,
                **alive,
            }
            run_id = str(store.client.create_run(experiment, run_name=name, tags=tags).info.run_id)
        if not found or PARAMETERS_TAG not in found[0].tags:
            _log_constants(store, run_id, recipe, card)
    return run_id


def experiment_id(store: "Store", name: str) -> str:
    """Returns the id of an experiment, made where it is new.

    Raises:
        TrackingError: it was deleted, or the store refuses.
    """
    from mlflow.exceptions import MlflowException

    with location.named(store.uri, experiment=name):
        found = store.client.get_experiment_by_name(name)
        if found is None:
            place = f"{store.artifacts}/{name}" if store.artifacts else None
            try:
                return str(store.client.create_experiment(name, place, view.experiment_tags()))
            except MlflowException as error:  # another driver was first
                found = store.client.get_experiment_by_name(name)
                if found is None:
                    raise error
    if found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"experiment {name!r} of {store.uri} is deleted; restore it with `mlflow experiments restore "
            f"--experiment-id {found.experiment_id}`, or choose another name (tracking.experiment)"
        )
    return str(found.experiment_id)


def shown_folder(store_uri: str, folder: str) -> str:
    """Writes a run folder as the UI shows it: `runs/name` where it lies beside the store's file, else whole."""
    file = location.sqlite_file(store_uri)
    if file is None or not storage.is_local(folder):
        return folder
    path = storage.local_path(folder)
    return str(path.relative_to(file.parent)) if path.is_relative_to(file.parent) else folder


def whole_folder(store_uri: str, shown: str) -> str:
    """Inverse of `shown_folder`, in whatever folder this process works."""
    file = location.sqlite_file(store_uri)
    relative = storage.is_local(shown) and not shown.startswith("file:") and not Path(shown).is_absolute()
    return str(file.parent / shown) if file is not None and relative else shown


def _log_constants(store: "Store", run_id: str, recipe: "Recipe", card: "DatasetCard") -> None:
    """Logs what never changes in a run; the tag is set last, so that a kill in between repeats it whole."""
    from mlflow.entities import Param

    client = store.client
    params = [Param(key, _text(value)) for key, value in recipe.flat().items()]
    for first in range(0, len(params), 100):
        client.log_batch(run_id, params=params[first : first + 100])
    client.log_inputs(run_id, datasets=[dataset_input(card, recipe.shards.uri)])
    client.log_text(run_id, recipe.to_yaml(), "recipe.yaml")
    client.log_text(run_id, card.to_json(), "dataset_card.json")
    client.log_text(run_id, facts.all_packages(), "packages.txt")
    client.set_tag(run_id, PARAMETERS_TAG, "logged")


def _text(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)

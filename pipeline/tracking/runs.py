"""Runs: opened, found again by their id, and as rows of a table."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from d2ls import storage
from d2ls.errors import TrackingError
from pipeline.tracking import connection, mlflow_internals, run_tags
from pipeline.tracking.connection import shown

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Run

    from d2ls.shards import DatasetCard
    from pipeline.config import Recipe
    from pipeline.tracking.store import Store

PARAMETERS_TAG = "d2ls.parameters"
FOLDER_TAG = "d2ls.run_folder"
END_TAG = "d2ls.end"
NOTE_TAG = "mlflow.note.content"
PER_REQUEST = 100
"""Parameters or tags that MLflow takes at once."""
PARENT_TAG = "mlflow.parentRunId"
NAME_TAG = "d2ls.name"


@dataclass(frozen=True)
class RunRow:
    """A run as a row of a table.

    Attributes:
        run_id: MLflow's id.
        name: the name given at its start.
        status: RUNNING, FINISHED, FAILED or KILLED.
        params: flattened recipe, as text.
        metrics: last value of each metric.
        tags: all tags.
        start: seconds since the epoch.
        seconds: how long it ran, None while it runs.
    """

    run_id: str
    name: str
    status: str
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    start: float = 0.0
    seconds: float | None = None


def dataset_input(card: "DatasetCard", uri: str) -> Any:
    """Describes the shards as a data set of MLflow, which takes 36 characters of a digest."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    profile = {
        name: {"samples": split.samples, "digest": split.digest} for name, split in card.splits.items()
    }
    schema = {"classes": list(card.classes.names), "bands": list(card.bands), "dtype": card.dtype}
    dataset = Dataset(
        name=card.name,
        digest=card.digest[:36],
        source_type="s3" if uri.startswith("s3:") else "local",
        source=json.dumps({"uri": uri}),
        schema=json.dumps(schema),
        profile=json.dumps({"protocol": card.protocol, "digest": card.digest, "splits": profile}),
    )
    return DatasetInput(dataset, tags=[InputTag("mlflow.data.context", "training")])


def row_of(run: "Run") -> RunRow:
    """Takes what a table needs from MLflow's run."""
    info, data = run.info, run.data
    end = info.end_time
    return RunRow(
        run_id=info.run_id,
        name=data.tags.get(NAME_TAG) or info.run_name or info.run_id,
        status=info.status,
        params=dict(data.params),
        metrics=dict(data.metrics),
        tags=dict(data.tags),
        start=info.start_time / 1000,
        seconds=(end - info.start_time) / 1000 if end else None,
    )


def start(
    store: "Store",
    recipe: "Recipe",
    card: "DatasetCard",
    name: str,
    kind: str,
    *,
    folder: str = "",
    parent_run_id: str = "",
    keep: Callable[[str], None] = lambda run_id: None,
) -> str:
    """Opens a new run; returns its id.

    Args:
        store: where.
        recipe: the resolved recipe; logged as a file and as parameters.
        card: card of the shards; logged as the data set of the run.
        name: shown in the list; need not be unique.
        kind: `sweep`, `trial` or `training`.
        folder: location of its run folder.
        parent_run_id: run of the sweep that this is a trial of.
        keep: called with the id as soon as there is one, so that a process killed right after loses no run.
    """
    with connection.named(store.uri, run=name):
        tags = {
            **run_tags.run_tags(recipe, card, kind),
            NOTE_TAG: run_tags.description(recipe, card, kind),
            **_place_tags(store, name, folder, parent_run_id),
        }
        tags = {key: run_tags.short(value) for key, value in tags.items()}
        experiment = experiment_id(store, recipe.experiment)
        run = connection.retried(lambda: store.client.create_run(experiment, run_name=name, tags=tags))
        run_id = str(run.info.run_id)
        keep(run_id)
        connection.retried(lambda: _log_constants(store, run_id, recipe, card))
    return run_id


def resume(
    store: "Store",
    run_id: str,
    recipe: "Recipe",
    card: "DatasetCard",
    name: str,
    *,
    parent_run_id: str = "",
    **place: str,
) -> None:
    """Goes on in a run: it is open again, and nothing in it says how it ended.

    Args:
        store: where.
        run_id: as the run folder keeps it.
        recipe: the resolved recipe.
        card: card of the shards.
        name: of the run.
        parent_run_id: run of the sweep that this is a trial of.
        **place: the run folder, as for `own`.

    Raises:
        TrackingError: the run is not there, deleted, or belongs to another training.
    """
    run = own(store, run_id, recipe, name, **place)
    with connection.named(store.uri, run=run_id):
        refuse_moved(store, store.client.get_experiment(run.info.experiment_id))
        connection.retried(lambda: store.client.update_run(run_id, status="RUNNING"))
        store.set_tags(run_id, _place_tags(store, name, place["folder"], parent_run_id))
        if END_TAG in run.data.tags:
            store.client.delete_tag(run_id, END_TAG)
        if PARAMETERS_TAG not in run.data.tags:
            known = run.data.params
            connection.retried(lambda: _log_constants(store, run_id, recipe, card, known))


def own(
    store: "Store",
    run_id: str,
    recipe: "Recipe",
    name: str,
    *,
    folder: str,
    folder_before: str = "",
    store_before: str = "",
) -> "Run":
    """Returns the MLflow run that a run folder names, if it is of that training.

    Args:
        store: where.
        run_id: as the run folder keeps it.
        recipe: of the run folder.
        name: of the run.
        folder: location of the run folder.
        folder_before: where the folder was when the run was opened last; it may have been moved.
        store_before: store that the run was opened in, for the message.

    Raises:
        TrackingError: the run is not there, deleted, or belongs to another training.
    """
    with connection.named(store.uri, run=run_id):
        run = _get(store, run_id, folder, store_before)
    places = [shown_folder(store.uri, each) for each in (folder, folder_before) if each]
    fitting = {NAME_TAG: [name], FOLDER_TAG: places, "recipe_digest": [recipe.digest()]}
    differing = [
        f"its tag {key} is {run.data.tags[key]!r}, not {values[0]!r}"
        for key, values in fitting.items()
        if run.data.tags.get(key, values[0]) not in values
    ]
    if differing:
        raise TrackingError(
            f"{folder}: MLflow run {run_id} of {shown(store.uri)} belongs to another training: {'; '.join(differing)}. "
            f"{_ANEW.format(folder=folder)}"
        )
    return run


_ANEW = "To log to a new MLflow run take `run_id` out of {folder}/run.json"


def _get(store: "Store", run_id: str, folder: str, store_before: str) -> "Run":
    """Returns the run that a run folder names."""
    from mlflow.exceptions import MlflowException

    try:
        run = store.client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        elsewhere = store_before not in ("", store.uri)
        other = f" It was opened in {shown(store_before)}: set tracking.uri to that." if elsewhere else ""
        raise TrackingError(
            f"{folder}: its MLflow run {run_id} is not in {shown(store.uri)}.{other} If `mlflow gc` removed it: "
            f"{_ANEW.format(folder=folder)}"
        ) from error
    if run.info.lifecycle_stage == "deleted":
        raise TrackingError(
            f"{folder}: its MLflow run {run_id} was deleted in {shown(store.uri)}. Take it back with "
            f"`MLFLOW_TRACKING_URI={shown(store.uri)} mlflow runs restore --run-id {run_id}`. "
            f"{_ANEW.format(folder=folder)}"
        )
    return run


def _place_tags(store: "Store", name: str, folder: str, parent_run_id: str) -> dict[str, str]:
    """Tags that say where a run belongs."""
    return {
        NAME_TAG: name,
        **({FOLDER_TAG: shown_folder(store.uri, folder)} if folder else {}),
        **({PARENT_TAG: parent_run_id} if parent_run_id else {}),
    }


def experiment_id(store: "Store", name: str) -> str:
    """Returns the id of an experiment, made where it is new.

    Raises:
        TrackingError: it was deleted, its files were moved, or the store refuses.
    """
    client = store.client

    def get_or_create() -> Any:
        found = client.get_experiment_by_name(name)
        if found is not None:
            return found
        place = f"{store.artifacts}/{name}" if store.artifacts else None
        return client.get_experiment(
            client.create_experiment(name, place, mlflow_internals.experiment_tags())
        )

    with connection.named(store.uri, experiment=name):
        found = connection.retried(get_or_create)
    if found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"experiment {name!r} of {shown(store.uri)} is deleted; restore it with `mlflow experiments restore "
            f"--experiment-id {found.experiment_id}`, or choose another name (tracking.experiment)"
        )
    refuse_moved(store, found)
    return str(found.experiment_id)


def refuse_moved(store: "Store", experiment: "Experiment") -> None:
    """Refuses an SQLite store that was moved: MLflow keeps the complete location of an experiment's files.

    Raises:
        TrackingError: names the link that makes the old location valid.
    """
    file, location = connection.sqlite_file(store.uri), experiment.artifact_location
    if file is None or not location or not storage.is_local(location):
        return
    then = storage.local_path(location)
    now = file.parent / "mlartifacts" / then.name
    if then.exists() or not now.exists() or then.parent.name != now.parent.name:
        return
    raise TrackingError(
        f"experiment {experiment.name!r} of {store.uri}: its files were in {then} and now are in {now}: the folder was "
        f"moved. Move it back, or make the old place lead here: `ln -s {file.parent} {then.parents[1]}`"
    )


def shown_folder(store_uri: str, folder: str) -> str:
    """Writes a run folder as the UI shows it: `runs/name` where it lies beside the store's file, else whole."""
    file = connection.sqlite_file(store_uri)
    if file is None or not storage.is_local(folder):
        return folder
    path = storage.local_path(folder)
    return str(path.relative_to(file.parent)) if path.is_relative_to(file.parent) else folder


def _log_constants(
    store: "Store",
    run_id: str,
    recipe: "Recipe",
    card: "DatasetCard",
    known: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Logs what never changes in a run; the tag is set last, so that a kill in between repeats it whole."""
    from mlflow.entities import Param

    client = store.client
    params = [
        Param(key, run_tags.short(_text(value))) for key, value in recipe.flat().items() if key not in known
    ]
    for batch in connection.batches(params, PER_REQUEST):
        client.log_batch(run_id, params=batch)
    client.log_inputs(run_id, datasets=[dataset_input(card, recipe.shards.uri)])
    client.log_text(run_id, recipe.to_yaml(), "recipe.yaml")
    client.log_text(run_id, card.to_json(), "dataset_card.json")
    client.log_text(run_id, run_tags.all_packages(), "packages.txt")
    client.set_tag(run_id, PARAMETERS_TAG, "logged")


def _text(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def children(store: "Store", parent_id: str) -> list[RunRow]:
    """Returns the trials of a sweep, oldest first."""
    experiment = store.client.get_run(parent_id).info.experiment_id
    wanted = f"tags.`{PARENT_TAG}` = '{parent_id}'"
    return list(_pages(store, [experiment], wanted, "attributes.start_time ASC"))


def search(store: "Store", filter_string: str, experiment: str | None = None) -> Iterator[RunRow]:
    """Yields runs by MLflow's filter, newest first, of one experiment or of all."""
    yield from _pages(store, experiments(store, experiment), filter_string)


def experiments(store: "Store", name: str | None = None) -> list[str]:
    """Returns the ids of the experiment with this name, or of all."""
    return [each.experiment_id for each in store.client.search_experiments() if name in (None, each.name)]


def _pages(
    store: "Store", chosen: Sequence[str], filter_string: str, order: str = "attributes.start_time DESC"
) -> Iterator[RunRow]:
    token = None
    while chosen:
        page = store.client.search_runs(
            list(chosen), filter_string, max_results=1000, order_by=[order], page_token=token
        )
        yield from map(row_of, page)
        token = page.token
        if not token:
            return

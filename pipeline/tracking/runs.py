"""Runs: opened once, found again by name or id, as rows of a table."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2ls import storage
from d2ls.errors import TrackingError
from pipeline import process_identity
from pipeline.tracking import connection, run_tags, view

if TYPE_CHECKING:
    from mlflow.entities import Run

    from d2ls.shards import DatasetCard
    from pipeline.config import Recipe
    from pipeline.tracking.store import Store

PARAMETERS_TAG = "d2ls.parameters"
FOLDER_TAG = "d2ls.run_folder"
DRIVER_TAG = "d2ls.driver"
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


def table(rows: Iterable[RunRow], keys: Iterable[str], metric: str) -> str:
    """Writes runs as a Markdown table, best first: name, swept keys, metric, status, minutes."""
    keys = list(keys)
    ranked = sorted(rows, key=lambda row: -row.metrics.get(metric, float("-inf")))
    lines = ["| " + " | ".join(["run", *keys, metric, "state", "minutes"]) + " |"]
    lines.append("|" + "---|" * (len(keys) + 4))
    for row in ranked:
        score = f"{row.metrics[metric]:.4f}" if metric in row.metrics else "-"
        minutes = f"{row.seconds / 60:.1f}" if row.seconds is not None else "-"
        cells = [row.name, *(row.params.get(key, "-") for key in keys), score, row.status.lower(), minutes]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


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
    alive = {DRIVER_TAG: process_identity.this_process(), **extra}
    if FOLDER_TAG in alive:
        alive[FOLDER_TAG] = shown_folder(store.uri, alive[FOLDER_TAG])
    with connection.named(store.uri, run=name):
        found = by_name(store, name, [experiment])
        if found:
            run_id = found[0].run_id
            store.client.update_run(run_id, status="RUNNING")
            store.set_tags(run_id, alive)
        else:
            tags = {
                **run_tags.run_tags(recipe, card, kind),
                "mlflow.note.content": run_tags.description(recipe, card, kind),
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

    with connection.named(store.uri, experiment=name):
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
    file = connection.sqlite_file(store_uri)
    if file is None or not storage.is_local(folder):
        return folder
    path = storage.local_path(folder)
    return str(path.relative_to(file.parent)) if path.is_relative_to(file.parent) else folder


def whole_folder(store_uri: str, shown: str) -> str:
    """Inverse of `shown_folder`, in whatever folder this process works."""
    file = connection.sqlite_file(store_uri)
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
    client.log_text(run_id, run_tags.all_packages(), "packages.txt")
    client.set_tag(run_id, PARAMETERS_TAG, "logged")


def _text(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def find(store: "Store", run: str, experiment: str | None = None) -> RunRow:
    """Returns the newest run with a name or an id; see `Store.find`."""
    if len(run) == 32 and all(letter in "0123456789abcdef" for letter in run):
        return store.run(run)
    rows = by_name(store, run, experiments(store, experiment))
    if not rows:
        every = search(store, "", experiment)
        newest = ", ".join(row.name for row, _ in zip(every, range(5), strict=False))
        raise TrackingError(
            f"no run {run!r} in {store.uri}{f', experiment {experiment}' if experiment else ''}. "
            f"Newest runs: {newest or 'none at all'}"
        )
    return rows[0]


def by_name(store: "Store", name: str, chosen: Sequence[str]) -> list[RunRow]:
    """Returns the runs with a name in some experiments (ids), newest first."""
    return list(_pages(store, chosen, f"tags.`{NAME_TAG}` = '{quoted(name)}'"))


def children(store: "Store", parent_id: str) -> list[RunRow]:
    """Returns the trials of a sweep, oldest first."""
    experiment = store.client.get_run(parent_id).info.experiment_id
    wanted = f"tags.`{PARENT_TAG}` = '{parent_id}'"
    return list(_pages(store, [experiment], wanted, "attributes.start_time ASC"))


def orphans(store: "Store") -> list[RunRow]:
    """Returns the runs that are open although the driver, a process of this machine, is gone."""
    running = search(store, "attributes.status = 'RUNNING'")
    return [row for row in running if process_identity.is_gone(row.tags.get(DRIVER_TAG, ""))]


def search(store: "Store", filter_string: str, experiment: str | None = None) -> Iterator[RunRow]:
    """Yields runs by MLflow's filter, newest first, of one experiment or of all."""
    yield from _pages(store, experiments(store, experiment), filter_string)


def experiments(store: "Store", name: str | None = None) -> list[str]:
    """Returns the ids of the experiment with this name, or of all."""
    return [each.experiment_id for each in store.client.search_experiments() if name in (None, each.name)]


def quoted(text: str) -> str:
    """Makes a text harmless inside the quotes of a filter."""
    return text.replace("'", "")


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

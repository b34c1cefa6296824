"""MLflow runs: as rows of a table, their tags, and their run folders."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from d2ls import storage
from d2ls.errors import TrackingError
from pipeline.tracking.connection import shown, sqlite_file
from pipeline.tracking.run_tags import short

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Param, Run

    from d2ls.shards import DatasetCard
    from pipeline.config import Recipe

NAME_TAG, FOLDER_TAG, END_TAG = "d2ls.name", "d2ls.run_folder", "d2ls.end"
COMPLETE_TAG = "d2ls.parameters"
"""Tag that is set when everything constant in a run has been logged."""
PARENT_TAG = "mlflow.parentRunId"
NOTE_TAG = "mlflow.note.content"
NEW_RUN = "To log to a new MLflow run take `run_id` out of {folder}/run.json"


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
        seconds: its duration, None while it runs.
    """

    run_id: str
    name: str
    status: str
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    start: float = 0.0
    seconds: float | None = None

    @classmethod
    def of(cls, run: "Run") -> "RunRow":
        """Converts MLflow's run."""
        info, data = run.info, run.data
        return cls(
            run_id=info.run_id,
            name=data.tags.get(NAME_TAG) or info.run_name or info.run_id,
            status=info.status,
            params=dict(data.params),
            metrics=dict(data.metrics),
            tags=dict(data.tags),
            start=info.start_time / 1000,
            seconds=(info.end_time - info.start_time) / 1000 if info.end_time else None,
        )


def place_tags(store_uri: str, name: str, folder: str, parent_run_id: str) -> dict[str, str]:
    """Returns the tags that name a run, its folder and its sweep."""
    return {
        NAME_TAG: name,
        **({FOLDER_TAG: shown_folder(store_uri, folder)} if folder else {}),
        **({PARENT_TAG: parent_run_id} if parent_run_id else {}),
    }


def shareable(recipe: "Recipe") -> "Recipe":
    """Returns the recipe as others may read it: without the password of the store."""
    uri = recipe.tracking.uri
    return recipe.with_values({"tracking.uri": shown(uri)}) if uri else recipe


def params(recipe: "Recipe", known: Mapping[str, str]) -> "list[Param]":
    """Returns the flattened recipe as MLflow parameters, without those that a run has already."""
    from mlflow.entities import Param

    return [Param(key, short(_text(value))) for key, value in recipe.flat().items() if key not in known]


def dataset_input(card: "DatasetCard", uri: str) -> Any:
    """Describes the shards as an MLflow data set, whose digest has at most 36 characters."""
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


def get_run(client: "MlflowClient", store_uri: str, run_id: str, folder: str, store_before: str) -> "Run":
    """Returns the run that a run folder names.

    Raises:
        TrackingError: the store does not have it, or has deleted it.
    """
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        elsewhere = shown(store_before) not in ("", shown(store_uri))
        other = f" It was opened in {shown(store_before)}: set tracking.uri to that." if elsewhere else ""
        raise TrackingError(
            f"{folder}: its MLflow run {run_id} is not in {shown(store_uri)}.{other} If `mlflow gc` removed it: "
            f"{NEW_RUN.format(folder=folder)}"
        ) from error
    if run.info.lifecycle_stage == "deleted":
        raise TrackingError(
            f"{folder}: its MLflow run {run_id} was deleted in {shown(store_uri)}. Restore it with "
            f"`MLFLOW_TRACKING_URI={shown(store_uri)} mlflow runs restore --run-id {run_id}`. "
            f"{NEW_RUN.format(folder=folder)}"
        )
    return run


def check_same_training(
    run: "Run", store_uri: str, recipe: "Recipe", name: str, folder: str, folder_before: str
) -> None:
    """Refuses a run whose name, folder or recipe is not that of the run folder.

    Raises:
        TrackingError: names the tags that differ.
    """
    places = [shown_folder(store_uri, place) for place in (folder, folder_before) if place]
    expected = {NAME_TAG: [name], FOLDER_TAG: places, "recipe_digest": [recipe.digest()]}
    differing = [
        f"its tag {key} is {run.data.tags[key]!r}, not {values[0]!r}"
        for key, values in expected.items()
        if run.data.tags.get(key, values[0]) not in values
    ]
    if differing:
        raise TrackingError(
            f"{folder}: MLflow run {run.info.run_id} of {shown(store_uri)} belongs to another training: "
            f"{'; '.join(differing)}. {NEW_RUN.format(folder=folder)}"
        )


def check_not_moved(store_uri: str, experiment: "Experiment") -> None:
    """Refuses an SQLite store that was moved: MLflow stores the absolute path of an experiment's files.

    Raises:
        TrackingError: names the link that makes the old location valid.
    """
    file, location = sqlite_file(store_uri), experiment.artifact_location
    if file is None or not location or not storage.is_local(location):
        return
    then = storage.local_path(location)
    now = file.parent / "mlartifacts" / then.name
    if then.exists() or not now.exists() or then.parent.name != now.parent.name:
        return
    raise TrackingError(
        f"experiment {experiment.name!r} of {store_uri}: its files were in {then} and now are in {now}: the folder was "
        f"moved. Move it back, or make the old place lead here: `ln -s {file.parent} {then.parents[1]}`"
    )


def shown_folder(store_uri: str, folder: str) -> str:
    """Returns a run folder as the UI shows it: `runs/name` if it is beside the store's file, else the full path."""
    file = sqlite_file(store_uri)
    if file is None or not storage.is_local(folder):
        return folder
    path = storage.local_path(folder)
    return str(path.relative_to(file.parent)) if path.is_relative_to(file.parent) else folder


def _text(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)

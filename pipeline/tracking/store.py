"""The MLflow store: the driver opens and closes runs here; rank 0 logs to them through `RunWriter`."""

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Self

from d2ls.errors import TrackingError
from pipeline.tracking import connection, mlflow_internals, run_tags, runs, writer
from pipeline.tracking.runs import RunRow

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from d2ls.shards import DatasetCard
    from pipeline.config import Recipe
    from pipeline.config.tracking import TrackingConfig

Status = Literal["FINISHED", "FAILED", "KILLED"]
PER_REQUEST = 100
"""Largest number of parameters or tags in one request."""


@dataclass(frozen=True)
class Store:
    """An MLflow store that is ready for use. Plain values: it can be sent to any process.

    Attributes:
        uri: complete URI, the same in every process.
        artifacts: root for the files of new experiments; None if a server decides.
    """

    uri: str
    artifacts: str | None = None

    @classmethod
    def open(
        cls, config: "TrackingConfig | None" = None, *, folder: Path | None = None, create: bool = True
    ) -> Self:
        """Resolves the store's URI and makes the store ready; call it once, before other processes start.

        Args:
            config: recipe section; its `uri` comes before MLFLOW_TRACKING_URI, and that before SQLite in the folder.
            folder: base of relative paths; None: the working folder.
            create: whether to make a missing SQLite store; readers pass False.

        Raises:
            TrackingError: the store cannot be reached or made; the message tells what to do.
        """
        folder = folder or Path.cwd()
        uri = connection.resolve_uri(config.uri if config else None, folder)
        if not create:
            connection.require(uri)
        connection.prepare(uri)
        return cls(uri, connection.artifact_root(uri, folder))

    @property
    def client(self) -> "MlflowClient":
        """MLflow client of this store."""
        return connection.connect(self.uri)

    def ui_command(self, port: int = 5000) -> str:
        """Returns the command line that opens the MLflow UI on this store, or its address if it is a server."""
        uri = connection.shown(self.uri)
        if connection.is_server(uri):
            return uri
        return (
            f"{shlex.quote(sys.executable)} -m mlflow ui --backend-store-uri {shlex.quote(uri)} --port {port}"
        )

    def run_list(self, experiment: str, root: str = "http://127.0.0.1:5000") -> str:
        """Returns the address of an experiment's run list in the UI, with the columns in which runs differ."""
        root = connection.shown(self.uri) if connection.is_server(self.uri) else root
        return mlflow_internals.run_list(root, self.experiment_id(experiment))

    def experiment_id(self, name: str) -> str:
        """Returns the id of an experiment; creates a new one.

        Raises:
            TrackingError: it was deleted, its files were moved, or the store refuses.
        """

        def get_or_create() -> Any:
            existing = self.client.get_experiment_by_name(name)
            if existing is not None:
                return existing
            place = f"{self.artifacts}/{name}" if self.artifacts else None
            tags = mlflow_internals.experiment_tags()
            return self.client.get_experiment(self.client.create_experiment(name, place, tags))

        with connection.named(self.uri, experiment=name):
            experiment = connection.retried(get_or_create)
        if experiment.lifecycle_stage == "deleted":
            raise TrackingError(
                f"experiment {name!r} of {connection.shown(self.uri)} is deleted; restore it with `mlflow experiments "
                f"restore --experiment-id {experiment.experiment_id}`, or choose another name (tracking.experiment)"
            )
        runs.check_not_moved(self.uri, experiment)
        return str(experiment.experiment_id)

    def start_run(
        self,
        recipe: "Recipe",
        card: "DatasetCard",
        name: str,
        kind: str = "training",
        *,
        folder: str = "",
        parent_run_id: str = "",
        keep: Callable[[str], None] = lambda run_id: None,
    ) -> str:
        """Opens a new run; returns its id.

        Args:
            recipe: the resolved recipe; logged as a file and as parameters.
            card: card of the shards; logged as the data set of the run.
            name: shown in the list; need not be unique.
            kind: `sweep`, `trial`, `training` or `import`.
            folder: location of its run folder.
            parent_run_id: run of the sweep that this is a trial of.
            keep: called with the id as soon as it is known, so that a process killed right after it loses no run.
        """
        tags = {
            **run_tags.run_tags(recipe, card, kind),
            runs.NOTE_TAG: run_tags.description(recipe, card, kind),
            **runs.place_tags(self.uri, name, folder, parent_run_id),
        }
        tags = {key: run_tags.short(value) for key, value in tags.items()}
        with connection.named(self.uri, run=name):
            experiment = self.experiment_id(recipe.experiment)
            run = connection.retried(lambda: self.client.create_run(experiment, run_name=name, tags=tags))
            run_id = str(run.info.run_id)
            keep(run_id)
            connection.retried(lambda: self._log_constants(run_id, recipe, card))
        return run_id

    def resume_run(
        self,
        run_id: str,
        recipe: "Recipe",
        card: "DatasetCard",
        name: str,
        *,
        folder: str,
        folder_before: str = "",
        store_before: str = "",
        parent_run_id: str = "",
    ) -> None:
        """Continues a run: sets its state to RUNNING, and removes the tag with the reason of its end.

        Args:
            run_id: as the run folder keeps it.
            recipe: the resolved recipe.
            card: card of the shards.
            name: of the run.
            folder: see `verify_run`, also for the next two.
            folder_before: location of the run folder when the run was opened last.
            store_before: store that the run was opened in.
            parent_run_id: run of the sweep that this is a trial of.

        Raises:
            TrackingError: the run does not exist, was deleted, or belongs to another training.
        """
        place = {"folder": folder, "folder_before": folder_before, "store_before": store_before}
        row = self.verify_run(run_id, recipe, name, **place)
        with connection.named(self.uri, run=run_id):
            experiment = self.client.get_run(run_id).info.experiment_id
            runs.check_not_moved(self.uri, self.client.get_experiment(experiment))
            connection.retried(lambda: self.client.update_run(run_id, status="RUNNING"))
            self.set_tags(run_id, runs.place_tags(self.uri, name, folder, parent_run_id))
            if runs.END_TAG in row.tags:
                self.client.delete_tag(run_id, runs.END_TAG)
            if runs.COMPLETE_TAG not in row.tags:
                connection.retried(lambda: self._log_constants(run_id, recipe, card, row.params))

    def verify_run(
        self,
        run_id: str,
        recipe: "Recipe",
        name: str,
        *,
        folder: str,
        folder_before: str = "",
        store_before: str = "",
    ) -> RunRow:
        """Returns the MLflow run that a run folder names, if it is of that training.

        Args:
            run_id: as the run folder keeps it.
            recipe: of the run folder.
            name: of the run.
            folder: location of the run folder.
            folder_before: where the folder was when the run was opened last; it may have been moved.
            store_before: store that the run was opened in, for the message.

        Raises:
            TrackingError: the run does not exist, was deleted, or belongs to another training.
        """
        with connection.named(self.uri, run=run_id):
            run = runs.get_run(self.client, self.uri, run_id, folder, store_before)
        runs.check_same_training(run, self.uri, recipe, name, folder, folder_before)
        return RunRow.of(run)

    def end_run(
        self, run_id: str, status: Status = "FINISHED", *, reason: str = "", end_time: float | None = None
    ) -> None:
        """Closes a run.

        Args:
            run_id: id of the run.
            status: its final status.
            reason: why it ended; stored as a tag.
            end_time: seconds since the epoch; None: now.
        """
        with connection.named(self.uri, run=run_id):
            if reason:
                self.set_tags(run_id, {runs.END_TAG: reason})
            milliseconds = None if end_time is None else int(1000 * end_time)
            connection.retried(lambda: self.client.set_terminated(run_id, status, end_time=milliseconds))

    def log_text(self, run_id: str, text: str, file: str) -> None:
        """Logs a text file."""
        with connection.named(self.uri, run=run_id):
            self.client.log_text(run_id, text, file)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Sets tags."""
        from mlflow.entities import RunTag

        rows = [RunTag(key, run_tags.short(str(value))) for key, value in tags.items()]
        with connection.named(self.uri, run=run_id):
            for batch in connection.batches(rows, PER_REQUEST):
                connection.retried(partial(self.client.log_batch, run_id, tags=batch))

    def send_spooled(self, folder: Path | str) -> int:
        """Sends the waiting entries of a run on this machine; returns their number.

        Raises:
            TrackingError: the store does not take them; they stay in the queue.
        """
        return writer.send_all(self.client, Path(folder))

    def run(self, run_id: str) -> RunRow:
        """Returns one run.

        Raises:
            TrackingError: no such run.
        """
        with connection.named(self.uri, run=run_id):
            return RunRow.of(self.client.get_run(run_id))

    def children(self, parent_id: str) -> list[RunRow]:
        """Returns the trials of a sweep, oldest first."""
        experiment = self.client.get_run(parent_id).info.experiment_id
        return self.search(f"tags.`{runs.PARENT_TAG}` = '{parent_id}'", [experiment])[::-1]

    def search(self, filter_string: str, experiment_ids: Sequence[str] | None = None) -> list[RunRow]:
        """Returns the runs that pass MLflow's filter, newest first, of some experiments or of all."""
        chosen = experiment_ids or [item.experiment_id for item in self.client.search_experiments()]
        rows: list[RunRow] = []
        token: str | None = None
        while True:
            page = self.client.search_runs(
                list(chosen), filter_string, order_by=["attributes.start_time DESC"], page_token=token
            )
            rows += map(RunRow.of, page)
            token = page.token
            if not token:
                return rows

    def _log_constants(
        self,
        run_id: str,
        recipe: "Recipe",
        card: "DatasetCard",
        known: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Logs everything constant in a run. A tag is set last: without it everything is logged again."""
        client, recipe = self.client, runs.shareable(recipe)
        for batch in connection.batches(runs.params(recipe, known), PER_REQUEST):
            client.log_batch(run_id, params=batch)
        client.log_inputs(run_id, datasets=[runs.dataset_input(card, recipe.shards.uri)])
        client.log_text(run_id, recipe.to_yaml(), "recipe.yaml")
        client.log_text(run_id, card.to_json(), "dataset_card.json")
        client.log_text(run_id, run_tags.all_packages(), "packages.txt")
        client.set_tag(run_id, runs.COMPLETE_TAG, "logged")

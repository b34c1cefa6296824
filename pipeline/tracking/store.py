"""The MLflow store: runs are opened and closed here by the driver, models registered."""

import math
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pipeline.tracking import connection, mlflow_internals, run_tags, runs, writer
from pipeline.tracking.runs import RunRow, row_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from d2ls.shards import DatasetCard
    from pipeline.config import Recipe
    from pipeline.config.tracking import TrackingConfig
    from pipeline.registry.versions import ModelVersion

Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class Store:
    """An MLflow store that is ready for use. Plain values: it can be sent to any process.

    Attributes:
        uri: complete URI, the same in every process.
        artifacts: root for the files of new experiments; None where a server decides.
    """

    uri: str
    artifacts: str | None = None

    @classmethod
    def open(
        cls, config: "TrackingConfig | None" = None, *, folder: Path | None = None, create: bool = True
    ) -> Self:
        """Resolves the store's URI and makes it ready; call once, before any fan-out.

        Args:
            config: recipe section; its `uri` wins over MLFLOW_TRACKING_URI, that over SQLite in the folder.
            folder: what relative locations are relative to; None: the working folder.
            create: whether a missing SQLite store is made; readers say False.

        Raises:
            TrackingError: the store cannot be reached or made; says what to do.
        """
        folder = folder or Path.cwd()
        uri = connection.resolve_uri(config.uri if config else None, folder)
        if not create:
            connection.require(uri)
        connection.prepare(uri)
        return cls(uri, connection.artifact_root(uri, folder))

    @property
    def client(self) -> "MlflowClient":
        """MLflow's client of this store."""
        return connection.connect(self.uri)

    def ui_command(self, port: int = 5000) -> str:
        """Returns the command line that opens the MLflow UI on this store, or its address where it is a server."""
        if connection.is_server(self.uri):
            return self.uri
        return f"{sys.executable} -m mlflow ui --backend-store-uri {shlex.quote(self.uri)} --port {port}"

    def run_list(self, experiment: str, root: str = "http://127.0.0.1:5000") -> str:
        """Returns the address of an experiment's run list in the UI, with the columns that tell runs apart."""
        root = self.uri if connection.is_server(self.uri) else root
        return mlflow_internals.run_list(root, self.experiment_id(experiment))

    def experiment_id(self, name: str) -> str:
        """Returns the id of an experiment, made where it is new.

        Raises:
            TrackingError: it was deleted, or the store refuses.
        """
        return runs.experiment_id(self, name)

    def start_run(
        self, recipe: "Recipe", card: "DatasetCard", name: str, kind: str = "training", **where: Any
    ) -> str:
        """Opens a new run and returns its id; see `runs.start`."""
        return runs.start(self, recipe, card, name, kind, **where)

    def resume_run(self, run_id: str, recipe: "Recipe", card: "DatasetCard", name: str, **where: Any) -> None:
        """Goes on in a run; see `runs.resume`."""
        runs.resume(self, run_id, recipe, card, name, **where)

    def own_run(self, run_id: str, recipe: "Recipe", name: str, **place: str) -> RunRow:
        """Returns the run that a run folder names, if it is of that training; see `runs.own`."""
        return row_of(runs.own(self, run_id, recipe, name, **place))

    def end_run(
        self, run_id: str, status: Status = "FINISHED", *, reason: str = "", end_time: float | None = None
    ) -> None:
        """Closes a run.

        Args:
            run_id: of the run.
            status: how it ended.
            reason: why, in words; kept as a tag.
            end_time: when, in seconds since the epoch; None: now.
        """
        with connection.named(self.uri, run=run_id):
            if reason:
                self.set_tags(run_id, {runs.END_TAG: reason})
            at = None if end_time is None else int(1000 * end_time)
            connection.retried(lambda: self.client.set_terminated(run_id, status, end_time=at))

    def log_metrics(self, run_id: str, values: Mapping[str, float], step: int = 0) -> None:
        """Logs numbers of one step at once; those that are not a number are left out."""
        from mlflow.entities import Metric

        with connection.named(self.uri, run=run_id):
            rows = [
                Metric(writer.metric_name(key), float(value), writer.now(), step)
                for key, value in values.items()
                if not math.isnan(value)
            ]
            for batch in connection.batches(rows, writer.PER_REQUEST):
                connection.retried(partial(self.client.log_batch, run_id, metrics=batch))

    def log_text(self, run_id: str, text: str, file: str) -> None:
        """Logs a text file."""
        with connection.named(self.uri, run=run_id):
            self.client.log_text(run_id, text, file)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Sets tags."""
        from mlflow.entities import RunTag

        rows = [RunTag(key, run_tags.short(str(value))) for key, value in tags.items()]
        with connection.named(self.uri, run=run_id):
            for batch in connection.batches(rows, runs.PER_REQUEST):
                connection.retried(partial(self.client.log_batch, run_id, tags=batch))

    def run(self, run_id: str) -> RunRow:
        """Returns one run.

        Raises:
            TrackingError: no such run.
        """
        with connection.named(self.uri, run=run_id):
            return row_of(self.client.get_run(run_id))

    def children(self, parent_id: str) -> list[RunRow]:
        """Returns the trials of a sweep, oldest first."""
        return runs.children(self, parent_id)

    def send_spooled(self, folder: Path | str) -> int:
        """Sends what waits in the queue of a run, on this machine; returns how many entries.

        Raises:
            TrackingError: the store does not take them; they stay.
        """
        return writer.send_all(self.client, Path(folder))

    def register(
        self,
        run_id: str,
        checkpoint_folder: "Path | str",
        name: str,
        *,
        card: "DatasetCard",
        evaluation: Mapping[str, Any] | None = None,
        recipe: "Recipe",
        step: int = 0,
    ) -> "ModelVersion":
        """Registers the model of a checkpoint as a new version, alias `challenger`; see `registration.register`."""
        from pipeline.registry import logged_model

        return logged_model.register(
            self, run_id, checkpoint_folder, name, card=card, evaluation=evaluation, recipe=recipe, step=step
        )

    def promote(self, name: str, version: str, reason: str) -> "ModelVersion":
        """Makes a version the champion; see `registry.promote`."""
        from pipeline.registry import versions

        return versions.promote(self, name, version, reason)

    def champion(self, name: str) -> "ModelVersion | None":
        """Returns the champion, None where there is none."""
        from pipeline.registry import versions

        return versions.by_alias(self, name, versions.CHAMPION)

    def download(self, model_uri: str, folder: Path | None = None) -> Path:
        """Returns a local folder with the bundle of a registered or logged model; see `registry.download`."""
        from pipeline.registry import versions

        return versions.download(self, model_uri, folder)

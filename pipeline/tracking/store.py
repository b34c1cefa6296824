"""Runs: opened and closed by the driver, found again by name, listed for tables."""

import logging
import shlex
import socket
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt

from d2ls.errors import TrackingError
from pipeline import process_identity
from pipeline.tracking import connection, runs, view, writer
from pipeline.tracking.runs import DRIVER_TAG, PARENT_TAG, RunRow, row_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from d2ls.shards import DatasetCard
    from pipeline.config import Recipe
    from pipeline.config.tracking import TrackingConfig
    from pipeline.tracking.registry import ModelVersion

LOG = logging.getLogger(__name__)
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
        return view.run_list(root, self.experiment_id(experiment))

    def experiment_id(self, name: str) -> str:
        """Returns the id of an experiment, made where it is new.

        Raises:
            TrackingError: it was deleted, or the store refuses.
        """
        return runs.experiment_id(self, name)

    def start_sweep_run(self, recipe: "Recipe", card: "DatasetCard", name: str) -> str:
        """Opens (or finds again, by name) the parent run of a sweep; returns its id."""
        return runs.start(self, recipe, card, name, "sweep", {})

    def start_training_run(
        self,
        recipe: "Recipe",
        card: "DatasetCard",
        name: str,
        parent_run_id: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Opens a run of one training, or finds it again by its name: a resumed training goes on in its run.

        Args:
            recipe: the resolved recipe; logged as a file and as parameters, once.
            card: card of the shards; logged as the data set of the run.
            name: unique in the experiment.
            parent_run_id: run of the sweep this is a trial of.
            tags: further tags.

        Returns:
            The run's id.
        """
        extra = dict(tags or {})
        if parent_run_id:
            extra[PARENT_TAG] = parent_run_id
        return runs.start(self, recipe, card, name, "trial" if parent_run_id else "training", extra)

    def end_run(self, run_id: str, status: Status = "FINISHED") -> None:
        """Closes a run, after sending what its writer left on this machine."""
        with connection.named(self.uri, run=run_id):
            row = self.run(run_id)
            try:
                self._send_left(row)
            except TrackingError as error:
                LOG.warning("%s", error)
            self.client.set_terminated(run_id, status)

    def log_metrics(self, run_id: str, values: Mapping[str, float], step: int = 0) -> None:
        """Logs numbers of one step at once."""
        from mlflow.entities import Metric

        with connection.named(self.uri, run=run_id):
            rows = [Metric(key, float(value), writer.now(), step) for key, value in values.items()]
            for start in range(0, len(rows), 1000):
                self.client.log_batch(run_id, metrics=rows[start : start + 1000])

    def log_text(self, run_id: str, text: str, file: str) -> None:
        """Logs a text file."""
        with connection.named(self.uri, run=run_id):
            self.client.log_text(run_id, text, file)

    def log_picture(
        self, run_id: str, key: str, image: npt.NDArray[np.uint8], step: int | None = None
    ) -> None:
        """Logs a picture (H W 3, RGB): with a step it moves under its key, without one it is the file `key`.png."""
        with connection.named(self.uri, run=run_id):
            if step is None:
                self.client.log_image(run_id, image, f"{key}.png")
            else:
                self.client.log_image(run_id, image, key=key, step=step)

    def log_file(self, run_id: str, file: Path, folder: str | None = None) -> None:
        """Logs a local file."""
        with connection.named(self.uri, run=run_id):
            self.client.log_artifact(run_id, str(file), folder)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Sets tags."""
        from mlflow.entities import RunTag

        with connection.named(self.uri, run=run_id):
            self.client.log_batch(run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])

    def describe(self, run_id: str, markdown: str) -> None:
        """Replaces the run's description."""
        self.set_tags(run_id, {"mlflow.note.content": markdown})

    def run(self, run_id: str) -> RunRow:
        """Returns one run.

        Raises:
            TrackingError: no such run.
        """
        with connection.named(self.uri, run=run_id):
            return row_of(self.client.get_run(run_id))

    def recipe(self, run_id: str) -> "Recipe":
        """Returns the resolved recipe that a run was started with.

        Raises:
            TrackingError: the run has none.
        """
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        from pipeline.config import parse_recipe, read_yaml

        with tempfile.TemporaryDirectory() as scratch:
            try:
                file = download_artifacts(
                    run_id=run_id, artifact_path="recipe.yaml", dst_path=scratch, tracking_uri=self.uri
                )
                text = Path(file).read_text(encoding="utf-8")
            except (MlflowException, OSError) as error:
                raise TrackingError(f"run {run_id}: no recipe.yaml is logged with it ({error})") from error
        where = f"recipe.yaml of run {run_id}"
        return parse_recipe(read_yaml(text, where=where), where=where)

    def find(self, run: str, experiment: str | None = None) -> RunRow:
        """Returns the newest run with a name or an id, in one experiment or in all.

        Raises:
            TrackingError: none; names the newest runs.
        """
        return runs.find(self, run, experiment)

    def children(self, parent_id: str) -> list[RunRow]:
        """Returns the trials of a sweep, oldest first."""
        return runs.children(self, parent_id)

    def run_folder(self, row: RunRow) -> str | None:
        """Returns the location of a run's folder; None where none is noted (a sweep has none)."""
        shown = row.tags.get(runs.FOLDER_TAG)
        return runs.whole_folder(self.uri, shown) if shown else None

    def send_spooled(self, run_id: str, folder: Path) -> int:
        """Sends what a writer could not, from its folder on this machine; returns how many entries.

        Raises:
            TrackingError: the store does not take them.
        """
        sent = writer.send_all(self.client, Path(folder))
        if sent:
            self.client.delete_tag(run_id, writer.SPOOL_TAG)
        return sent

    def close_orphans(self) -> list[RunRow]:
        """Closes runs of this machine whose driver is gone (as KILLED) and sends what they left; returns them."""
        here = f"{runs.quoted(socket.gethostname())}:%"
        for row in list(runs.search(self, f"tags.`{writer.SPOOL_TAG}` LIKE '{here}'")):
            if process_identity.is_gone(row.tags.get(DRIVER_TAG, "")) or row.status != "RUNNING":
                self._send_left(row)
        orphans = runs.orphans(self)
        for row in orphans:
            self.set_tags(row.run_id, {"d2ls.end": f"driver {row.tags[DRIVER_TAG]} is gone"})
            self.end_run(row.run_id, "KILLED")
        return orphans

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
        from pipeline.tracking import registration

        return registration.register(
            self, run_id, checkpoint_folder, name, card=card, evaluation=evaluation, recipe=recipe, step=step
        )

    def promote(self, name: str, version: str, reason: str) -> "ModelVersion":
        """Makes a version the champion; see `registry.promote`."""
        from pipeline.tracking import registry

        return registry.promote(self, name, version, reason)

    def champion(self, name: str) -> "ModelVersion | None":
        """Returns the reigning version, None where none reigns."""
        from pipeline.tracking import registry

        return registry.by_alias(self, name, registry.CHAMPION)

    def download(self, model_uri: str, folder: Path | None = None) -> Path:
        """Returns a local folder with the bundle of a registered or logged model; see `registry.download`."""
        from pipeline.tracking import registry

        return registry.download(self, model_uri, folder)

    def _send_left(self, row: RunRow) -> None:
        """Sends what the writer of a run left in its folder, if that is on this machine."""
        host, _, folder = row.tags.get(writer.SPOOL_TAG, "").partition(":")
        if host == socket.gethostname():
            writer.send_all(self.client, Path(folder))
            self.client.delete_tag(row.run_id, writer.SPOOL_TAG)

"""Parts of MLflow that this project needs and that MLflow does not document.

tests/unit/pipeline/tracking/test_mlflow_internals.py shows which of them a new MLflow version broke.

- The classes and folders behind an SQL store: `create_database`, `check_schema`, `as_default`.
- The text of a failed request: `unreachable`.
- The names of logged pictures, and the columns of the run list, which the UI keeps as a tag of the experiment.
"""

import base64
import contextlib
import json
import os
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from d2ls.errors import TrackingError

_DEFAULT_LOCK = threading.RLock()

VIEW = "d2ls"
PICTURES = "images"
"""Artifact folder of the pictures that change with the step."""
NAME_WIDTH = 245
METRICS = {"best/miou": 95, "epoch": 75}
TAGS = {
    "dataset": 95, "protocol": 90, "architecture": 105, "stages": 70, "temperature": 110, "contrastive": 105,
    "dictionary": 100, "backbone": 110, "seed": 65,
}  # fmt: skip
"""Columns in their order, with widths in pixels: all of them fit on a screen that is 1600 pixels wide."""


def create_database(file: Path, artifacts: str) -> None:
    """Creates an SQLite store under a temporary name and moves it into place when it is complete.

    MLflow would run its dozens of migrations on the final file and wait for the disk after each: that takes seconds,
    and an interruption leaves a broken store.

    Args:
        file: the database.
        artifacts: URI of the folder for the files of the default experiment.
    """
    import sqlalchemy
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    partial = file.with_name(f".{file.name}.{os.getpid()}-{threading.get_ident()}.tmp")

    def skip_disk_waits(connection: Any, record: Any) -> None:
        if connection.execute("PRAGMA database_list").fetchone()[2] == os.path.realpath(partial):
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("PRAGMA journal_mode = MEMORY")

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", skip_disk_waits)
    try:
        store: Any = SqlAlchemyStore
        store(f"sqlite:///{partial}", artifacts).engine.dispose()
        try:
            os.link(partial, file)
        except FileExistsError:
            return  # another process was first; its store is used
        except OSError:  # the file system has no hard links
            partial.replace(file)
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "connect", skip_disk_waits)
        partial.unlink(missing_ok=True)


def check_schema(uri: str, name: str) -> None:
    """Refuses a database of another version of MLflow. MLflow itself would upgrade some of them without a backup.

    Args:
        uri: the database.
        name: its URI without a password, for messages.

    Raises:
        TrackingError: names the command that upgrades it.
    """
    import mlflow
    import sqlalchemy
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
    with engine.connect() as opened:
        revision = MigrationContext.configure(opened).get_current_revision()
    migrations = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    if revision in (None, migrations.get_current_head()):
        return
    if revision in {script.revision for script in migrations.walk_revisions()}:
        raise TrackingError(
            f"tracking store {name}: its schema ({revision}) is older than MLflow {mlflow.__version__} needs. Copy "
            f"the database, then run `mlflow db upgrade {name}`"
        )
    raise TrackingError(
        f"tracking store {name}: its schema ({revision}) is unknown to MLflow {mlflow.__version__}: a newer version "
        "made it. Install that version of MLflow, or name another store in tracking.uri"
    )


@contextlib.contextmanager
def as_default(database: str) -> Iterator[None]:
    """Makes a database the default store of the process within the block.

    A registry in a database looks up logged models in the default store, not in that of the client.
    """
    import mlflow

    with _DEFAULT_LOCK:
        before = os.environ.get("MLFLOW_TRACKING_URI")  # `set_tracking_uri` keeps it there as well
        mlflow.set_tracking_uri(database)
        try:
            yield
        finally:
            mlflow.set_tracking_uri(cast(str, None))  # None unsets it
            if before is not None:
                os.environ["MLFLOW_TRACKING_URI"] = before


def unreachable(error: Exception) -> bool:
    """Returns whether a request got no answer, or only server errors; MLflow has no error class for that."""
    return "API request to" in str(error) and "failed with exception" in str(error)


def picture_of(path: str) -> tuple[str, int]:
    """Returns key and step of a picture from the path of its thumbnail, which is written last; else `("", -1)`."""
    parts = path.rsplit("/", 1)[-1].split("+")
    if len(parts) < 3 or parts[1] != "step" or not path.endswith("+compressed.webp"):
        return "", -1
    return parts[0].replace("~", "/"), int(parts[2])


def experiment_tags() -> dict[str, str]:
    """Returns the tags of a new experiment: its kind, the metric that ranks its runs, and the view of the run list."""
    return {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.experiment.primaryMetric.name": "val/miou",
        "mlflow.experiment.primaryMetric.greaterIsBetter": "true",
        f"mlflow.sharedViewState.{VIEW}": _packed(_view_state()),
    }


def run_list(root: str, experiment_id: str) -> str:
    """Returns the address of an experiment's run list with these columns."""
    query = f"viewStateShareKey={VIEW}&workflowType=machine_learning"
    return f"{root}/#/experiments/{experiment_id}/runs?{query}"


def _view_state() -> dict[str, object]:
    shown = {
        **{f"metrics.`{name}`": width for name, width in METRICS.items()},
        **{f"tags.`{name}`": width for name, width in TAGS.items()},
        "attributes.`Models`": 120,
    }
    widths = {"attributes.`Run Name`": NAME_WIDTH, **shown}
    return {
        "searchFilter": "", "orderByKey": "attributes.start_time", "orderByAsc": False, "startTime": "ALL",
        "lifecycleFilter": "Active", "datasetsFilter": [], "modelVersionFilter": "All Runs",
        "selectedColumns": list(shown), "columnOrder": list(widths), "columnWidths": widths,
        "runsExpanded": {}, "runsPinned": [], "runsHidden": [], "runsVisibilityMap": {},
        "runsHiddenMode": "FIRST_10_RUNS", "viewMaximized": False,
        "runListHidden": False, "groupBy": None, "groupsExpanded": {}, "autoRefreshEnabled": True,
        "useGroupedValuesInCharts": True, "hideEmptyCharts": True,
    }  # fmt: skip


def _packed(state: dict[str, object]) -> str:
    content = zlib.compress(json.dumps(state, separators=(",", ":")).encode())
    return f"deflate;{base64.b64encode(content).decode()}"

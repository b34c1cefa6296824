"""Where the MLflow store is, how to reach it, and what to say when it cannot be reached."""

import contextlib
import logging
import os
import sqlite3
import threading
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2ls.errors import TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE = "sqlite:///"
SERVERS = ("http://", "https://")
DATABASES = ("sqlite:", "postgresql", "mysql", "mssql")
PROBE_SECONDS = 10.0
_DEFAULT_LOCK = threading.RLock()
CHATTY = (
    "mlflow.store.db.utils",
    "mlflow.pyfunc",
    "mlflow.utils.environment",
    "alembic",
    "alembic.runtime.migration",
)


def resolve_uri(uri: str | None, folder: Path) -> str:
    """Returns the complete URI of the store: as given, else MLFLOW_TRACKING_URI, else SQLite in the folder.

    Raises:
        TrackingError: a kind of store that MLflow no longer writes to.
    """
    given = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    if given.startswith(SQLITE):
        return f"{SQLITE}{(folder / given.removeprefix(SQLITE)).absolute()}"
    if not given.startswith((*SERVERS, *DATABASES)):
        raise TrackingError(
            f"tracking store {given!r}: MLflow keeps runs in a database or on a server. "
            "Set tracking.uri (or MLFLOW_TRACKING_URI) to sqlite:///mlflow.db or http://host:5000"
        )
    return given.rstrip("/")


def is_server(uri: str) -> bool:
    """Says whether the store is an MLflow server."""
    return uri.startswith(SERVERS)


def sqlite_file(uri: str) -> Path | None:
    """Returns the file of an SQLite store, None for any other."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def artifact_root(uri: str, folder: Path) -> str | None:
    """Returns where new experiments keep their files; None where a server decides."""
    if is_server(uri):
        return None
    chosen = os.environ.get("MLFLOW_DEFAULT_ARTIFACT_ROOT")
    if chosen:
        return chosen
    file = sqlite_file(uri)
    return ((file.parent if file else folder) / "mlartifacts").absolute().as_uri()


@lru_cache(maxsize=8)
def connect(uri: str) -> "MlflowClient":
    """Returns the client of a store; tracking and registry are the same store, nothing global is read.

    Raises:
        TrackingError: an SQLite file that is not there: a worker on another node would silently make a new one.
    """
    file = sqlite_file(uri)
    if file is not None and not file.is_file():
        raise TrackingError(
            f"{file}: no such tracking database on this machine. An SQLite store is a local file; with more than "
            "one node put it on a shared disk, or start `mlflow server` and set tracking.uri=http://host:5000"
        )
    return _client(uri)


def require(uri: str) -> None:
    """Refuses an SQLite store that is not there, for those who only read.

    Raises:
        TrackingError: no such file.
    """
    file = sqlite_file(uri)
    if file is not None and not file.is_file():
        raise TrackingError(
            f"{file}: no tracking database here. Call this in the folder where you trained, or name the store "
            "(--store sqlite:////path/mlflow.db, or MLFLOW_TRACKING_URI)"
        )


def _client(uri: str) -> "MlflowClient":
    _settings()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _settings() -> None:
    """Defaults that MLflow reads from the environment alone; what the user has set stays."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # the queue on disk retries for longer


def prepare(uri: str) -> None:
    """Makes the store ready for many processes: creates or migrates a database, or probes a server.

    Raises:
        TrackingError: says what to do.
    """
    if is_server(uri):
        probe(uri)
        return
    file = sqlite_file(uri)
    try:
        with quiet():
            if file is not None and not file.exists():
                create(file)
            elif file is not None:
                migrate(uri, file)
            _client(uri).search_experiments(max_results=1)
    except TrackingError:
        raise
    except Exception as error:  # sqlalchemy, alembic, sqlite and mlflow raise unrelated classes here
        raise TrackingError(f"tracking store {uri}: cannot be opened: {error}") from error


def create(file: Path) -> None:
    """Makes an SQLite store beside its place and moves it there whole; without waiting for the disk, as it is new.

    MLflow would run its dozens of migrations on the final file, each waiting for the disk: seconds, and a broken
    store where they are interrupted.
    """
    import sqlalchemy
    from mlflow.store.db import utils

    upgrade: Any = utils
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    engine = sqlalchemy.create_engine(f"{SQLITE}{partial}", poolclass=sqlalchemy.StaticPool)
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA synchronous = OFF")
            connection.exec_driver_sql("PRAGMA journal_mode = MEMORY")
        upgrade._initialize_tables(engine)
        engine.dispose()
        try:
            os.link(partial, file)
        except FileExistsError:
            return  # another process was first; its store is as good
        except OSError:  # a file system without links
            partial.replace(file)
    finally:
        engine.dispose()
        partial.unlink(missing_ok=True)


def migrate(uri: str, file: Path) -> None:
    """Brings the schema of an older MLflow's SQLite file up to date, keeping a copy of the file beside it."""
    found = revision(file)
    if not found:
        return
    from mlflow.store.db import utils

    upgrade: Any = utils
    newest = upgrade._get_latest_schema_revision()
    if found == newest:
        return
    copy = file.with_name(f"{file.name}.{found}")
    with (
        contextlib.closing(sqlite3.connect(file)) as source,
        contextlib.closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target)
    upgrade._upgrade_db(upgrade.create_sqlalchemy_engine_with_retry(uri))


def revision(file: Path) -> str | None:
    """Returns the revision of the schema, None where the file holds none yet."""
    with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as connection:
        try:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.OperationalError:
            return None
    return str(row[0]) if row else None


def probe(uri: str) -> None:
    """Asks a server for one experiment, once, with the credentials that MLflow would use.

    Raises:
        TrackingError: nobody answers, or the server refuses; names the way out.
    """
    _settings()
    from mlflow.exceptions import MlflowException
    from mlflow.utils import credentials, rest_utils

    credentials_of: Any = credentials.get_default_host_creds
    request: Any = rest_utils.http_request
    try:
        answer = request(
            credentials_of(uri), "/api/2.0/mlflow/experiments/search", "GET", params={"max_results": 1},
            max_retries=0, timeout=PROBE_SECONDS, raise_on_status=False,
        )  # fmt: skip
    except MlflowException as error:
        reason = str(error).splitlines()[0][:300]
        raise TrackingError(
            f"tracking server {uri} does not answer ({reason}). Start it with `mlflow server`, mend tracking.uri "
            "or MLFLOW_TRACKING_URI, or unset both to use sqlite:///mlflow.db"
        ) from error
    if answer.status_code != 200:
        raise TrackingError(explain_refusal(uri, answer.status_code, answer.text))


def explain_refusal(uri: str, status: int, text: str) -> str:
    """Turns a refusal of a server into a message with the way out."""
    if status == 403 and "host" in text.lower():
        host = uri.split("://", 1)[-1].split("/", 1)[0]
        return (
            f"tracking server {uri} refuses the host name it is called by (403, {text.strip()[:120]}). Start it with "
            f"`mlflow server --allowed-hosts {host}` (the port is part of the match; "
            "MLFLOW_SERVER_ALLOWED_HOSTS does the same)"
        )
    if status in (401, 403):
        return (
            f"tracking server {uri} refuses the credentials ({status}). Set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    return f"tracking server {uri} answers {status}: {text.strip()[:200]}. Is this the address of an MLflow server?"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the screen free of the migration lines of a new database and of hints on how to write a model."""
    loggers = [logging.getLogger(name) for name in CHATTY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def as_default(uri: str) -> Iterator[None]:
    """Makes a store the process's default one for a moment.

    A registry in a database looks logged models up in the default store, whichever client asked; MLflow's own code
    has a note about it. Nothing else here depends on the default.
    """
    from mlflow.tracking._tracking_service import utils

    state: Any = utils
    with _DEFAULT_LOCK:
        given, variable = state._tracking_uri, os.environ.get("MLFLOW_TRACKING_URI")
        state.set_tracking_uri(uri)
        try:
            yield
        finally:
            state._tracking_uri = given
            os.environ.pop("MLFLOW_TRACKING_URI", None)
            if variable is not None:
                os.environ["MLFLOW_TRACKING_URI"] = variable


@contextlib.contextmanager
def named(uri: str, **about: Any) -> Iterator[None]:
    """Turns MLflow's errors into TrackingError with the store (and what it was about) in front."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        what = "".join(f", {key} {value}" for key, value in about.items())
        raise TrackingError(f"tracking store {uri}{what}: {error.message}") from error

"""Connection to the MLflow store: its location, its client, retries, and errors."""

import contextlib
import logging
import os
import random
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from d2ls import storage
from d2ls.errors import TrackingError
from d2ls.scratch import locked_folder
from pipeline.tracking.mlflow_internals import check_schema, create_database, unreachable

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOG = logging.getLogger(__name__)
Result = TypeVar("Result")
SQLITE = "sqlite:///"
SERVERS = ("http://", "https://")
DATABASES = ("sqlite:", "postgresql", "mysql", "mssql")
HIDDEN = "***"
"""What stands for a password in URIs that are shown or written to files."""
PROBE_SECONDS = 10
TRIES = 12
PATIENCE = 600.0
"""Seconds that a trial or a sweep waits for a server that answered when it began."""
TRANSIENT = (
    "UNIQUE constraint failed", "IntegrityError", "duplicate key", "Duplicate entry", "is locked", "eadlock",
    "Lock wait timeout", "could not serialize", "already exists",
)  # fmt: skip
"""Texts of the errors of databases that refuse one of two writers; the next attempt sees what the other one wrote."""
CHATTY = (
    "mlflow.store.db.utils",
    "mlflow.pyfunc",
    "mlflow.utils.environment",
    "alembic",
    "alembic.runtime.migration",
)


class UnreachableError(TrackingError):
    """The server does not answer; it may be back in a minute."""


def resolve_uri(uri: str | None, folder: Path) -> str:
    """Returns the complete URI of the store: as given, else MLFLOW_TRACKING_URI, else SQLite in the folder.

    A URI out of a run folder has no password (see `shown`); MLFLOW_TRACKING_URI must hold the same one with it.

    Raises:
        TrackingError: a kind of store that MLflow no longer writes to, or the password is missing.
    """
    variable = os.environ.get("MLFLOW_TRACKING_URI", "")
    given = uri or variable or f"{SQLITE}mlflow.db"
    if HIDDEN in given:
        if HIDDEN in variable or shown(variable).rstrip("/") != given.rstrip("/"):
            raise TrackingError(
                f"tracking store {given}: run folders keep no passwords. Set MLFLOW_TRACKING_URI to this URI with its "
                "password"
            )
        given = variable
    if given.startswith(SQLITE):
        return f"{SQLITE}{(folder / given.removeprefix(SQLITE)).absolute()}"
    if not given.startswith((*SERVERS, *DATABASES)):
        raise TrackingError(
            f"tracking store {shown(given)!r}: MLflow keeps runs in a database or on a server. "
            "Set tracking.uri (or MLFLOW_TRACKING_URI) to sqlite:///mlflow.db or http://host:5000"
        )
    return given.rstrip("/")


def found_again(store: str | None) -> str | None:
    """Returns where a store is now that no recipe names; None: where MLFLOW_TRACKING_URI says.

    A server that the variable named may have moved: a new head of a cluster has another address.

    Args:
        store: complete URI of the store when it was used last.
    """
    moved = is_server(store or "") and is_server(os.environ.get("MLFLOW_TRACKING_URI", ""))
    return None if moved else store or None


def is_server(uri: str) -> bool:
    """Returns whether the store is an MLflow server."""
    return uri.startswith(SERVERS)


def sqlite_file(uri: str) -> Path | None:
    """Returns the file of an SQLite store, None for any other."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def artifact_root(uri: str, folder: Path) -> str | None:
    """Returns the location of files of new experiments; None if a server decides."""
    if is_server(uri):
        return None
    chosen = os.environ.get("MLFLOW_DEFAULT_ARTIFACT_ROOT")
    if chosen:
        return chosen
    file = sqlite_file(uri)
    return ((file.parent if file else folder) / "mlartifacts").absolute().as_uri()


@lru_cache(maxsize=8)
def connect(uri: str) -> "MlflowClient":
    """Returns the client of a store, for tracking and registry, without reading global settings.

    Raises:
        TrackingError: the SQLite file does not exist. (A worker on another node would silently make a new one.)
    """
    file = sqlite_file(uri)
    if file is not None and not file.is_file():
        raise TrackingError(
            f"{file}: no such tracking database on this machine. An SQLite store is a local file; with more than "
            "one node put it on a shared disk, or start `mlflow server` and set tracking.uri=http://host:5000"
        )
    return _client(uri)


def require(uri: str) -> None:
    """Refuses an SQLite store that does not exist, for commands that only read.

    Raises:
        TrackingError: no such file.
    """
    file = sqlite_file(uri)
    if file is not None and not file.is_file():
        raise TrackingError(
            f"{file}: no tracking database here. Call this in the folder where you trained, or name the store "
            "(--tracking-uri sqlite:////path/mlflow.db, or MLFLOW_TRACKING_URI)"
        )


def _client(uri: str) -> "MlflowClient":
    _settings()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _settings() -> None:
    """Sets defaults of variables that MLflow reads only from the environment; values of the user are kept."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # the queue on disk retries longer


def prepare(uri: str) -> None:
    """Prepares the store for many processes: creates a missing SQLite file, checks a database, probes a server.

    Raises:
        TrackingError: the message tells what to do.
    """
    if is_server(uri):
        probe(uri)
        return
    file = sqlite_file(uri)
    try:
        with quiet():
            if file is not None and not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                with locked_folder(file.parent):
                    if not file.exists():  # another process may have been first
                        create_database(file, artifact_root(uri, file.parent) or "")
            else:
                check_schema(uri, shown(uri))
            retried(lambda: _client(uri).search_experiments(max_results=1))
    except TrackingError:
        raise
    except Exception as error:  # sqlalchemy, alembic, sqlite and mlflow raise unrelated classes here
        raise TrackingError(f"tracking store {shown(uri)}: cannot be opened: {error}") from error


def probe(uri: str) -> None:
    """Sends one request to a server, without retries, with the credentials that MLflow uses.

    Raises:
        UnreachableError: the server does not answer.
        TrackingError: the server refuses; the message tells what to do.
    """
    from mlflow.exceptions import MlflowException

    limits = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(PROBE_SECONDS)}
    try:
        client = _client(uri)
        with _environment(**limits):
            client.search_experiments(max_results=1)
    except MlflowException as error:
        if unreachable(error):
            raise UnreachableError(
                f"tracking server {shown(uri)} does not answer ({shown(str(error)).splitlines()[0][:300]}). Start it "
                "with `mlflow server`, correct tracking.uri or MLFLOW_TRACKING_URI, or unset both to use "
                "sqlite:///mlflow.db"
            ) from error
        refusal: Any = error
        raise TrackingError(
            explain_refusal(shown(uri), refusal.get_http_status_code(), shown(str(error)))
        ) from error


def explain_refusal(uri: str, status: int, text: str) -> str:
    """Turns a refusal of a server into a message that tells what to do."""
    if status == 403 and "host" in text.lower():
        host = uri.split("://", 1)[-1].split("/", 1)[0].rsplit("@", 1)[-1]
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
    """Hides log lines on the migration of a new database, and hints on how to write a model."""
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
def named(uri: str, **about: Any) -> Iterator[None]:
    """Turns MLflow's errors into TrackingError, which names the store and the subject of the request."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        what = "".join(f", {key} {value}" for key, value in about.items())
        kind = UnreachableError if is_server(uri) and unreachable(error) else TrackingError
        raise kind(f"tracking store {shown(uri)}{what}: {shown(error.message)}") from error


def retried(action: Callable[[], Result]) -> Result:
    """Calls `action`, and calls it again if the database refused one of two simultaneous writers."""
    for attempt in range(TRIES - 1):
        try:
            return action()
        except Exception as error:
            if not any(words in str(error) for words in TRANSIENT):
                raise
            LOG.debug("the tracking store was busy, trying again: %s", error)
            time.sleep(random.uniform(0, min(0.05 * 2**attempt, 2.0)))
    return action()


def patiently(action: Callable[[], Result], seconds: float) -> Result:
    """Calls `action`, and repeats it for up to `seconds` while the server does not answer.

    Raises:
        UnreachableError: the server did not come back.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return action()
        except UnreachableError as error:
            left = deadline - time.monotonic()
            if left <= 0:
                raise
            LOG.warning("%s. Trying again for %.0f s", error, left)
            time.sleep(min(5.0, left))


def batches(rows: Sequence[Result], size: int) -> Iterator[list[Result]]:
    """Cuts rows into lists of at most `size`, as MLflow limits requests."""
    for start in range(0, len(rows), size):
        yield list(rows[start : start + size])


def shown(text: str) -> str:
    """Returns a store's URI, or an error message, without the passwords of URIs."""
    text = storage.PASSWORD.sub(rf"\1:{HIDDEN}@", text)
    return re.sub(r"(?<=[?&]password=)[^&\s]+", HIDDEN, text)


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Sets environment variables within the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

"""The location of the store, and the errors if it cannot be reached."""

import base64
import http.server
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from mlflow.exceptions import MlflowException

from d2ls.errors import TrackingError
from pipeline.config.tracking import TrackingConfig
from pipeline.tracking import Store, connection, runs
from tests.tracked_runs import make_recipe, make_shards


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_DEFAULT_ARTIFACT_ROOT"):
        monkeypatch.delenv(name, raising=False)


def test_recipe_wins_over_environment_over_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert connection.resolve_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000/")
    assert connection.resolve_uri(None, tmp_path) == "http://host:5000"
    assert connection.resolve_uri("sqlite:///sub/runs.db", tmp_path) == f"sqlite:///{tmp_path}/sub/runs.db"
    assert connection.resolve_uri("sqlite:////abs/runs.db", tmp_path) == "sqlite:////abs/runs.db"


def test_a_uri_of_a_run_folder_takes_its_password_from_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, kept = "postgresql://me:secret@host/db", "postgresql://me:***@host/db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", full)
    assert connection.resolve_uri(kept, tmp_path) == full
    assert connection.resolve_uri(f"{kept}/", tmp_path) == full
    for other in ("", kept, "postgresql://me:secret@elsewhere/db"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
        with pytest.raises(TrackingError, match=r"me:\*\*\*@host/db.*Set MLFLOW_TRACKING_URI"):
            connection.resolve_uri(kept, tmp_path)


@pytest.mark.parametrize("uri", ["./mlruns", "file:///mlruns", "s3://bucket"])
def test_a_store_that_mlflow_no_longer_writes_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="sqlite:///mlflow"):
        connection.resolve_uri(uri, tmp_path)


def test_files_lie_beside_the_database_and_a_server_decides_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        connection.artifact_root(f"sqlite:///{tmp_path}/a/b.db", tmp_path)
        == f"file://{tmp_path}/a/mlartifacts"
    )
    assert connection.artifact_root("http://host:5000", tmp_path) is None
    monkeypatch.setenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", "s3://bucket/x")
    assert connection.artifact_root("postgresql://host/db", tmp_path) == "s3://bucket/x"


def test_a_reader_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"mlflow.db: no tracking database here.*MLFLOW_TRACKING_URI"):
        Store.open(TrackingConfig(), folder=tmp_path, create=False)
    assert not list(tmp_path.iterdir())


def test_a_worker_that_does_not_see_the_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="mlflow server"):
        connection.connect(f"sqlite:///{tmp_path}/elsewhere.db")


@pytest.mark.parametrize(
    ("status", "text", "words"),
    [
        (403, "Invalid Host header - possible DNS rebinding attack detected", "--allowed-hosts box:5000"),
        (401, "You are not authenticated", "MLFLOW_TRACKING_USERNAME"),
        (403, "Permission denied", "MLFLOW_TRACKING_TOKEN"),
        (404, "nothing", "answers 404"),
    ],
)
def test_refusals_name_the_way_out(status: int, text: str, words: str) -> None:
    assert words in connection.explain_refusal("http://box:5000", status, text)


def test_the_ui_command_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        "mlflow ui --backend-store-uri sqlite:////a/mlflow.db" in Store("sqlite:////a/mlflow.db").ui_command()
    )
    assert Store("http://host:5000").ui_command() == "http://host:5000"
    assert "me:***@host/db" in Store("postgresql://me:secret@host/db").ui_command()
    assert Store("http://me:secret@host").ui_command() == "http://me:***@host"


class _Guarded(http.server.BaseHTTPRequestHandler):
    """A server that requires an Authorization header."""

    expected = ""

    def do_POST(self) -> None:
        allowed = self.headers.get("Authorization") == self.expected
        self.send_response(200 if allowed else 401)
        self.end_headers()
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.wfile.write(b"{}" if allowed else b"who are you?")

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.mark.parametrize(
    ("expected", "variables"),
    [
        ("Basic " + base64.b64encode(b"me:secret").decode(),
         {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "secret"}),
        ("Bearer abc", {"MLFLOW_TRACKING_TOKEN": "abc"}),
    ],
)  # fmt: skip
def test_credentials_of_the_environment_are_used(
    expected: str, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Guarded, "expected", expected)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Guarded)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        uri = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(TrackingError, match=r"refuses the credentials.*MLFLOW_TRACKING_TOKEN"):
            connection.probe(uri)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        connection.probe(uri)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("store", "folder", "shown"),
    [
        ("sqlite:////home/me/mlflow.db", "/home/me/runs/first", "runs/first"),
        ("sqlite:////home/me/mlflow.db", "/disk/runs/first", "/disk/runs/first"),
        ("sqlite:////home/me/mlflow.db", "s3://bucket/runs/first", "s3://bucket/runs/first"),
        ("http://host:5000", "/home/me/runs/first", "/home/me/runs/first"),
    ],
)
def test_a_run_folder_is_shown_short(store: str, folder: str, shown: str) -> None:
    assert runs.shown_folder(store, folder) == shown


def test_a_server_that_is_back_soon_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection.time, "sleep", lambda seconds: None)
    tries = iter([connection.UnreachableError("away"), connection.UnreachableError("away"), None])

    def ask() -> str:
        if error := next(tries):
            raise error
        return "there"

    assert connection.patiently(ask, 60) == "there"
    with pytest.raises(connection.UnreachableError, match="does not answer"):
        connection.patiently(lambda: connection.probe("http://127.0.0.1:1"), 0)


def test_a_writer_that_came_second_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection.time, "sleep", lambda seconds: None)
    for words in ("UNIQUE constraint failed: datasets.name", "(sqlite3.OperationalError) database is locked"):
        tries = iter([MlflowException(words), MlflowException(words), None])

        def write() -> str:
            if error := next(tries):  # noqa: B023
                raise error
            return "written"

        assert connection.retried(write) == "written"
    with pytest.raises(MlflowException, match="wrong name"):
        connection.retried(lambda: (_ for _ in ()).throw(MlflowException("wrong name")))


def _sqlite_with_revision(file: Path, revision: str) -> str:
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")
        database.execute("INSERT INTO alembic_version VALUES (?)", [revision])
        database.commit()
    return f"sqlite:///{file}"


@pytest.mark.parametrize(
    ("revision", "words"),
    [
        (
            "97727af70f4d",
            r"schema \(97727af70f4d\) is older.*Copy the database, then run `mlflow db upgrade sql",
        ),
        ("of-next-year", r"a newer version made it. Install that version"),
    ],
)
def test_a_database_of_another_mlflow_is_refused_and_left_as_it_is(
    revision: str, words: str, tmp_path: Path
) -> None:
    uri = _sqlite_with_revision(tmp_path / "mlflow.db", revision)
    before = (tmp_path / "mlflow.db").read_bytes()
    with pytest.raises(TrackingError, match=words):
        Store.open(TrackingConfig(uri=uri))
    assert (tmp_path / "mlflow.db").read_bytes() == before


def test_a_password_is_not_shown() -> None:
    assert connection.shown("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("postgresql+psycopg2://me:pass%40word@host:5432/db", "postgresql+psycopg2://me:***@host:5432/db"),
        ("https://me:secret@host:5000/mlflow", "https://me:***@host:5000/mlflow"),
        ("postgresql://me:a/b@c@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:12@host/db", "postgresql://me:***@host/db"),
        ("postgresql:///db?host=h&password=x&port=1", "postgresql:///db?host=h&password=***&port=1"),
        ("http://host:5000", "http://host:5000"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("sqlite:////work/a:b@c/mlflow.db", "sqlite:////work/a:b@c/mlflow.db"),
    ],
)
def test_passwords_are_not_shown(uri: str, expected: str) -> None:
    assert connection.shown(uri) == expected


def test_passwords_are_not_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe of a trial names the store, and every user of MLflow can read parameters and files of its run."""
    client, uri = MagicMock(), "postgresql://me:secret@host/db"
    monkeypatch.setattr(connection, "connect", lambda uri: client)
    shards = make_shards(tmp_path)
    recipe = make_recipe(shards, **{"tracking.uri": uri})
    Store(uri)._log_constants("run", recipe, shards.card)
    logged = str(client.mock_calls)
    assert "me:***@host" in logged
    assert "secret" not in logged


def test_a_server_that_does_not_answer_is_named_without_its_password() -> None:
    with pytest.raises(TrackingError, match=r"http://me:\*\*\*@127.0.0.1:9 does not answer") as caught:
        connection.probe("http://me:secret@127.0.0.1:9")
    assert "secret" not in str(caught.value)

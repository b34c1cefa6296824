"""Undocumented parts of MLflow that this project uses: each test shows what a new MLflow version broke."""

import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from PIL import Image

from pipeline.tracking import Store, mlflow_internals
from tests.tracked_runs import make_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("store"))


def test_a_new_database_is_complete_and_has_todays_schema(store: Store) -> None:
    file = Path(store.uri.removeprefix("sqlite:///"))
    with closing(sqlite3.connect(file)) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert {"experiments", "runs", "metrics", "registered_models", "logged_models"} <= tables
    mlflow_internals.check_schema(store.uri, store.uri)
    assert not list(file.parent.glob(".mlflow.db*.tmp"))


def test_the_default_store_is_set_for_a_moment(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://other:5000")
    with mlflow_internals.as_default(store.uri):
        assert mlflow.get_tracking_uri() == store.uri
    assert mlflow.get_tracking_uri() == "http://other:5000"


def test_a_server_that_does_not_answer_is_told_from_one_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(MlflowException) as raised:
        MlflowClient("http://127.0.0.1:1").search_experiments()
    assert mlflow_internals.unreachable(raised.value)
    assert not mlflow_internals.unreachable(MlflowException("no such run"))


def test_the_name_of_a_picture_gives_key_and_step(store: Store) -> None:
    run = store.client.create_run(store.experiment_id("pictures")).info.run_id
    image = Image.fromarray(np.arange(75, dtype=np.uint8).reshape(5, 5, 3))
    store.client.log_image(run, image, key="sweep/trials", step=7)
    files = store.client.list_artifacts(run, mlflow_internals.PICTURES)
    pictures = [mlflow_internals.picture_of(file.path) for file in files]
    assert [picture for picture in pictures if picture[0]] == [("sweep/trials", 7)]


@pytest.mark.parametrize(
    "words", ["mlflow.sharedViewState.", "viewStateShareKey", "deflate;", "runsHiddenMode"]
)
def test_the_ui_still_reads_the_shared_view(words: str) -> None:
    scripts = Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js"
    assert any(words in script.read_text(errors="ignore") for script in scripts.glob("*.js")), words

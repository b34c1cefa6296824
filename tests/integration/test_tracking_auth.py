"""MLflow's own basic-auth app on loopback: the usual variables hold the credentials; an error names missing ones."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from d2ls.errors import TrackingError
from pipeline.config.tracking import TrackingConfig
from pipeline.registry import register_checkpoint, versions
from pipeline.tracking import Store
from pipeline.training.registration import RegisterRequest, register_run
from pipeline.training.run import TrainRequest, train
from pipeline.training.run_folder import RunFolder
from pipeline.tuning.run import SweepRequest, sweep
from tests.mlflow_processes import free_port, mlflow
from tests.tiny_recipes import tiny_recipe
from tests.tracked_runs import log_metrics, make_checkpoint, make_recipe, make_shards

pytestmark = pytest.mark.slow

PASSWORD = f"correct-horse-{os.getpid()}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    port = free_port()
    config = tmp_path / "auth.ini"
    config.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{tmp_path}/auth.db\n"
        f"admin_username = admin\nadmin_password = {PASSWORD}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    url = f"http://127.0.0.1:{port}"
    with mlflow(
        "server", "--app-name", "basic-auth", "--backend-store-uri", f"sqlite:///{tmp_path}/server.db",
        "--artifacts-destination", str(tmp_path / "files"), "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1", log=tmp_path / "server.log", health=f"{url}/health",
        environment={"MLFLOW_AUTH_CONFIG_PATH": str(config), "MLFLOW_FLASK_SERVER_SECRET_KEY": "for-this-test"},
    ):  # fmt: skip
        yield url


def test_runs_and_models_behind_a_password(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    config = TrackingConfig(uri=server)
    with pytest.raises(TrackingError, match=r"refuses the credentials \(401\).*MLFLOW_TRACKING_USERNAME"):
        Store.open(config)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    with pytest.raises(TrackingError, match="refuses the credentials"):
        Store.open(config)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    store = Store.open(config)
    shards = make_shards(tmp_path / "shards")
    recipe = make_recipe(shards)
    run = store.start_run(recipe, shards.card, "guarded")
    log_metrics(store, run, {"val/miou": 0.5})
    checkpoint = make_checkpoint(tmp_path / "checkpoint", shards, recipe)
    version = register_checkpoint(
        store, run, checkpoint, "guarded", card=shards.card, evaluation=None, recipe=recipe
    )
    store.end_run(run)
    assert store.run(run).metrics["val/miou"] == 0.5
    assert (versions.download(store, version.uri, tmp_path / "copy") / "model.safetensors").is_file()


@pytest.fixture
def uri(server: str) -> str:
    return server.replace("://", f"://admin:{PASSWORD}@")


def test_a_run_folder_keeps_no_password(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of runs are shared; the store's URI may name a password, in the recipe or in the environment."""
    recipe = tiny_recipe(
        tmp_path, tracking__uri=uri, cluster__workers=1, train__epochs=1, cluster__address=None
    )
    result = train(TrainRequest(recipe, "one"), quiet=True)
    _assert_no_password(tmp_path / "runs")
    folder = RunFolder.of(recipe.output_dir, "one")
    with pytest.raises(TrackingError, match=r"admin:\*\*\*@127.*Set MLFLOW_TRACKING_URI"):
        register_run(folder, RegisterRequest(), None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert register_run(folder, RegisterRequest(), None).run_id == result.run_id
    _assert_no_password(tmp_path / "runs")


def test_a_sweep_keeps_no_password_and_goes_on_with_it(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    recipe = tiny_recipe(
        tmp_path, tracking__uri=None, cluster__workers=1, train__epochs=1,
        sweep={"space": {"model.stages": {"values": [1, 2]}}, "search": "grid", "final": False},
    )  # fmt: skip
    sweep(SweepRequest(recipe, "both"))
    _assert_no_password(tmp_path / "runs")
    (trial,) = list((tmp_path / "runs" / "both" / "trials").glob("*.json"))[:1]
    trial.unlink()
    sweep(SweepRequest(recipe, resume="both"))
    assert trial.exists()
    _assert_no_password(tmp_path / "runs")


def _assert_no_password(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if PASSWORD.encode() in path.read_bytes()] == []

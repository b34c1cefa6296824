"""A real MLflow server on loopback with its files in an S3 store: runs, figures, registry; down, and back again."""

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from d2ls.errors import TrackingError
from pipeline import diagnosis
from pipeline.config.tracking import TrackingConfig
from pipeline.registry import model_files, register_checkpoint, versions
from pipeline.tracking import RunWriter, Store
from pipeline.training import tracked_run
from pipeline.training.run_folder import RunFolder
from tests.mlflow_processes import free_port, mlflow
from tests.tracked_runs import make_checkpoint, make_recipe, make_shards

pytestmark = pytest.mark.slow

PICTURE = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)


class Server:
    """Start and stop `mlflow server` on one port with one store."""

    def __init__(self, folder: Path, s3: str) -> None:
        self.port = free_port()
        self.url, self.folder, self.s3 = f"http://127.0.0.1:{self.port}", folder, s3

    def running(self):  # type: ignore[no-untyped-def]
        return mlflow(
            "server", "--backend-store-uri", f"sqlite:///{self.folder}/server.db", "--artifacts-destination",
            "s3://mlflow/files", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
            "--allowed-hosts", f"127.0.0.1:{self.port}", log=self.folder / "server.log", health=f"{self.url}/health",
            environment={"MLFLOW_S3_ENDPOINT_URL": self.s3, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
                         "AWS_DEFAULT_REGION": "us-east-1"},
        )  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    moto = ThreadedMotoServer("127.0.0.1", 0)
    moto.start()
    host, port = moto.get_host_and_port()
    s3 = f"http://{host}:{port}"
    boto3.client(
        "s3", endpoint_url=s3, aws_access_key_id="a", aws_secret_access_key="b", region_name="us-east-1"
    ).create_bucket(Bucket="mlflow")
    try:
        yield Server(tmp_path_factory.mktemp("server"), s3)
    finally:
        moto.stop()


def test_a_server_that_is_not_there_is_named_quickly(server: Server) -> None:
    started = time.monotonic()
    with pytest.raises(TrackingError, match=r"does not answer.*mlflow server"):
        Store.open(TrackingConfig(uri=server.url))
    assert time.monotonic() - started < 60


def test_the_whole_way_with_the_server_away_at_the_end_of_a_run(server: Server, tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards")
    recipe = make_recipe(shards, **{"output_dir": str(tmp_path / "runs"), "tracking.uri": server.url})
    folder = RunFolder.of(recipe.output_dir, "served")
    folder.create(recipe)
    folder.claim()
    with contextlib.ExitStack() as training:
        with server.running():
            with pytest.raises(TrackingError, match=r"--allowed-hosts localhost:\d+"):
                Store.open(TrackingConfig(uri=f"http://localhost:{server.port}"))
            store = Store.open(recipe.tracking)
            with ThreadPoolExecutor(20) as threads:
                at_once = threads.map(
                    lambda name: store.start_run(recipe, shards.card, name), map(str, range(20))
                )
                assert len(set(at_once)) == 20
            _, run = training.enter_context(tracked_run.tracked_run(recipe, shards.card, folder, "trial"))
            writer = RunWriter(store.uri, run, folder.spool)
            writer.metrics({"train/loss": 1.0}, 1)
            deadline = time.monotonic() + 60
            while len(writer.spool) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert not len(writer.spool)
        started = time.monotonic()
        for step in range(2, 30):  # training goes on
            writer.metrics({"train/loss": 1 / step}, step)
            writer.picture("predictions", PICTURE, step) if step % 10 == 0 else None
        assert time.monotonic() - started < 2.0
        assert writer.close(timeout=1.0) == 30
    assert folder.metadata()["state"] == "finished"
    with server.running():
        assert store.run(run).status == "RUNNING"
        (result,) = diagnosis.check_runs(store, recipe.output_dir)
        assert "served: 30 waiting log entries" in result.text
        history = store.client.get_metric_history(run, "train/loss")
        assert sorted(point.step for point in history) == list(range(1, 30))
        pictures = [
            file.path for file in store.client.list_artifacts(run, "images") if file.path.endswith(".png")
        ]
        assert len(pictures) == 2
        assert store.run(run).status == "FINISHED"
        assert not folder.spool.exists()
        checkpoint = make_checkpoint(tmp_path / "checkpoint", shards, recipe)
        version = register_checkpoint(
            store, run, checkpoint, "d2ls-served", card=shards.card, evaluation=None, recipe=recipe
        )
        versions.promote(store, "d2ls-served", version.version, "first")
        bundle = versions.download(store, "models:/d2ls-served@champion", tmp_path / "copy")
        assert model_files.bundle_digest(bundle) == model_files.bundle_digest(checkpoint)
        assert bundle != checkpoint
    assert not [
        thread for thread in threading.enumerate() if thread.name == "run-writer" and thread.is_alive()
    ]

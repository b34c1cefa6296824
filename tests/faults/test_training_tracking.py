"""The MLflow server is down for a while: training neither waits nor fails, and in the end nothing is missing."""

import contextlib

import pytest

from pipeline import cluster
from pipeline.tracking import Store
from pipeline.training.run import TrainRequest, train
from tests.mlflow_processes import free_port, mlflow
from tests.tiny_recipes import assert_undisturbed, tiny_recipe, undisturbed

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
EPOCHS, DOWN, UP = 14, 2, 9
"""The server is stopped after one epoch and started again after another."""


class Server:
    """An MLflow server on loopback that can be stopped and started again."""

    def __init__(self, folder):
        self.folder, self.port, self.running = folder, free_port(), contextlib.ExitStack()
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self):
        self.running.enter_context(
            mlflow(
                "server", "--backend-store-uri", f"sqlite:///{self.folder}/server.db", "--artifacts-destination",
                str(self.folder / "files"), "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
                log=self.folder / "server.log", health=f"{self.url}/health",
            )
        )  # fmt: skip

    def stop(self):
        self.running.close()


@pytest.mark.survives("the MLflow server is down for seven epochs")
def test_metrics_wait_for_the_server(tmp_path, record_property):
    server = Server(tmp_path)
    server.start()
    try:
        recipe = tiny_recipe(tmp_path, tracking__uri=server.url, train__epochs=EPOCHS)
        expected = undisturbed(recipe, tmp_path / "expected")

        def stop_and_start(metrics):
            if metrics["epoch"] == DOWN:
                server.stop()
            elif metrics["epoch"] == UP:  # logged while the server is down: training went on
                server.start()

        with cluster.connect(recipe.cluster):
            result = train(TrainRequest(recipe, name="unheard"), on_epoch=stop_and_start, quiet=True)
        difference = assert_undisturbed(result, expected)
        store = Store.open(recipe.tracking)
        row = store.run(result.run_id)
        losses = store.client.get_metric_history(result.run_id, "train/loss")
        scores = store.client.get_metric_history(result.run_id, "val/miou")
        assert sorted(point.step for point in losses) == list(range(1, 3 * EPOCHS + 1)), "every step, once"
        assert [point.value for point in sorted(scores, key=lambda point: point.step)] == pytest.approx(
            [epoch["val/miou"] for epoch in expected[1]]
        )
        assert row.status == "FINISHED"
        record_property("difference", difference)
        record_property(
            "happened", "training went on; metrics waited on disk and are complete in MLflow, each once"
        )
    finally:
        server.stop()

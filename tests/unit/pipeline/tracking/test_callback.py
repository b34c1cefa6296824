"""What reaches MLflow of a training that went on elsewhere."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from d2ls.metrics import score
from d2ls.training.callbacks import EvaluationReport, flat_metrics
from pipeline.tracking import connection
from pipeline.tracking.callback import TrackingCallback
from tests.tracked_runs import CLASSES
from tests.unit.pipeline.tracking.test_spool import FakeClient

RECIPE = SimpleNamespace(tracking=SimpleNamespace(system_metrics=False, figures_every=99))
SHARDS = SimpleNamespace(card=SimpleNamespace(classes=CLASSES))


def test_epochs_whose_entries_were_lost_with_a_node_are_complete_after_the_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the second epoch on the server does not answer. The node is lost; the training goes on on another one."""
    client, history = FakeClient(), []
    monkeypatch.setattr(connection, "connect", lambda uri: client)

    def session(node: str, epochs: range) -> TrackingCallback:
        callback = TrackingCallback("http://mlflow:5000", "run", tmp_path / node, RECIPE, SHARDS)  # type: ignore[arg-type]
        callback.on_start(history)
        for epoch in epochs:
            confusion = np.eye(4, dtype=np.int64) * (10, 30, 20, 40)[epoch - 1] + 5
            terms = {"total": 1 / epoch}
            best = epoch in (1, 2, 4)
            report = EvaluationReport(3 * epoch, epoch, "val", confusion, score(confusion), terms, best)
            callback.on_evaluation(report, None)  # type: ignore[arg-type]
            history.append(flat_metrics(epoch, 3 * epoch, terms, CLASSES, report))
        return callback

    session("first", range(1, 2)).close()
    client.down = True
    lost = session("lost", range(2, 4))
    lost.writer._deadline = 0.0  # its node is gone
    lost.writer._closing.set()
    client.down = False
    session("third", range(4, 5)).close()
    steps = {
        key: sorted(step for name, _, step in client.metrics if name == key) for key, _, _ in client.metrics
    }
    for key in ("val/miou", "val/iou/water", "epoch/loss", "epoch"):
        assert steps[key] == [3, 6, 9, 12], key
    assert steps["best/miou"] == [3, 6, 12]
    assert not any(key.startswith("train/") for key in steps), "those belong to steps"

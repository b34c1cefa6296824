"""Runs in a real SQLite store: opened by name, written by a training, closed when their driver is gone."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from d2ls.errors import TrackingError
from d2ls.metrics import score
from d2ls.shards import ShardSet
from d2ls.training.reports import EvaluationReport, StepReport
from pipeline.config import Recipe
from pipeline.config.tracking import TrackingConfig
from pipeline.tracking import Store, TrackingCallback, connection, table
from pipeline.tracking.spool import Entry, Spool
from tests.tracking_world import make_checkpoint, make_recipe, make_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def recipe(shards: ShardSet) -> Recipe:
    return make_recipe(shards)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(TrackingConfig(uri="sqlite:///runs.db"), folder=tmp_path_factory.mktemp("store"))


def test_a_run_is_opened_once_and_says_all_about_itself(
    store: Store, recipe: Recipe, shards: ShardSet
) -> None:
    run = store.start_training_run(recipe, shards.card, "first", tags={"d2ls.run_folder": "/somewhere"})
    store.end_run(run, "FAILED")
    assert store.start_training_run(recipe, shards.card, "first") == run
    row = store.find("first")
    assert (row.run_id, row.status) == (run, "RUNNING")
    assert row.params["model.stages"] == "1"
    assert row.params["train.clip_norm"] == "1.0"
    shown = {"dataset": "blobs", "protocol": "clean", "stages": "1", "temperature": "0.1", "contrastive": "infonce",
             "dictionary": "dynamic", "backbone": "convnext_atto", "kind": "training"}  # fmt: skip
    assert shown.items() <= row.tags.items()
    assert row.tags["dataset_digest"] == shards.card.digest
    assert row.tags["recipe_digest"] == recipe.digest()
    assert "torch" in row.tags["packages"]
    assert "blobs" in row.tags["mlflow.note.content"]
    assert store.recipe(run) == recipe
    (given,) = store.client.get_run(run).inputs.dataset_inputs
    assert given.dataset.name == "blobs"
    assert shards.card.digest.startswith(given.dataset.digest)
    assert shards.card.digest in given.dataset.profile
    store.end_run(run)
    assert store.find("first").status == "FINISHED"


def test_a_sweep_has_its_trials_and_a_table(store: Store, recipe: Recipe, shards: ShardSet) -> None:
    sweep = store.start_sweep_run(recipe, shards.card, "sweep")
    for number in (1, 2):
        trial = store.start_training_run(
            recipe.with_values({"model.stages": number}), shards.card, f"trial-{number}", sweep
        )
        store.log_metrics(trial, {"select/miou": number / 4}, step=7)
        store.end_run(trial)
    rows = store.children(sweep)
    assert [row.name for row in rows] == ["trial-1", "trial-2"]
    assert [row.metrics["select/miou"] for row in rows] == [0.25, 0.5]
    lines = table(rows, ["model.stages"], "select/miou").splitlines()
    assert lines[2].startswith("| trial-2 | 2 | 0.5000 | finished |")
    store.log_picture(sweep, "sweep/trials", np.zeros((9, 9, 3), np.uint8))
    store.log_text(sweep, "# Report", "report.md")
    store.describe(sweep, "# Report")
    assert {file.path for file in store.client.list_artifacts(sweep)} >= {"report.md", "sweep", "recipe.yaml"}
    store.end_run(sweep)


def test_a_training_writes_metrics_and_figures_that_move(
    store: Store, recipe: Recipe, shards: ShardSet, tmp_path: Path
) -> None:
    from d2ls.bundle import load_bundle

    network, _ = load_bundle(make_checkpoint(tmp_path / "checkpoint", shards, recipe))
    run = store.start_training_run(recipe, shards.card, "trained")
    callback = TrackingCallback(store.uri, run, tmp_path / "spool", recipe, shards)
    for step in range(1, 7):
        terms = {"total": 1 / step, "cross_entropy": 0.5 / step}
        seconds = {"data": 1.0, "forward": 2.0, "backward": 4.0, "optimizer": 1.0, "step": 8.0}
        callback.on_step(StepReport(step, 1 + step // 4, 3, 6, terms, 1e-4, 1.0, 9.0, seconds, 0, 20.0, 0.5))
        if step % 3 == 0:
            confusion = np.eye(4, dtype=np.int64) * step * 10 + 5
            report = EvaluationReport(
                step, step // 3, "val", confusion, score(confusion), {"total": 1.0}, True, 2.0
            )
            callback.on_evaluation(report, network)
    callback.close()
    store.end_run(run)
    metrics = store.run(run).metrics
    assert metrics["train/loss"] == pytest.approx(1 / 6)
    assert metrics["speed/data_share"] == 1 / 8
    parts = ("data", "forward", "backward", "optimizer")
    assert [metrics[f"speed/{part}_seconds"] for part in parts] == [1, 2, 4, 1]
    assert (metrics["speed/images_per_second"], metrics["speed/teraflops"], metrics["speed/flop_share"]) == (
        9,
        20,
        0.5,
    )
    assert metrics["epoch"] == 2
    assert metrics["select/iou/water"] == pytest.approx(score(confusion).iou[2])
    assert {"select/miou", "select/mf1", "select/oa", "train/lr", "dictionary/intra/d0", "best/miou"} <= set(
        metrics
    )
    assert len(store.client.get_metric_history(run, "train/loss")) == 6
    pictures = [Path(file.path).name for file in store.client.list_artifacts(run, "images")]
    for key in ("confusion", "class_iou", "predictions", "dictionary"):
        steps = {name.split("+")[2] for name in pictures if name.startswith(f"{key}+")}
        assert steps == {"3", "6"}, key
    newest = {Path(file.path).stem for file in store.client.list_artifacts(run, "figures")}
    assert newest == {"confusion", "class_iou", "predictions", "dictionary"}
    assert not (tmp_path / "spool").exists()


def test_orphans_are_closed_and_what_they_left_is_sent(
    store: Store, recipe: Recipe, shards: ShardSet, tmp_path: Path
) -> None:
    script = (
        "import sys, pathlib, time\n"
        "from d2ls.shards import ShardSet\n"
        "from pipeline.config import load_recipe\n"
        "from pipeline.tracking import RunWriter, Store\n"
        "import socket\n"
        "store, recipe = Store(sys.argv[1], sys.argv[2]), load_recipe(sys.argv[3])\n"
        "run = store.start_training_run(recipe, ShardSet.open(recipe.shards.uri).card, 'orphan')\n"
        "store.set_tags(run, {'d2ls.spool': f'{socket.gethostname()}:{sys.argv[4]}'})\n"
        "print(run, flush=True)\n"
        "time.sleep(300)\n"
    )
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    arguments = [store.uri, store.artifacts or "", str(tmp_path / "recipe.yaml"), str(tmp_path / "spool")]
    driver = subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert driver.stdout is not None
        run = driver.stdout.readline().strip()
        Spool(tmp_path / "spool").put(Entry("metrics", run, {"rows": [["late", 4.0]], "step": 1, "time": 5}))
        own = store.start_training_run(recipe, shards.card, "alive")
        assert store.close_orphans() == []
    finally:
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    assert [row.name for row in store.close_orphans()] == ["orphan"]
    row = store.run(run)
    assert (row.status, row.metrics) == ("KILLED", {"late": 4.0})
    assert "is gone" in row.tags["d2ls.end"]
    assert store.run(own).status == "RUNNING"
    assert store.close_orphans() == []
    assert store.start_training_run(recipe, shards.card, "orphan") == run  # a resumed one goes on in its run
    assert store.run(run).status == "RUNNING"
    for each in (run, own):
        store.end_run(each)


def test_many_processes_share_one_new_store(recipe: Recipe, shards: ShardSet, tmp_path: Path) -> None:
    script = (
        "import sys, pathlib\n"
        "from pipeline.tracking import Store\n"
        "from pipeline.config.tracking import TrackingConfig\n"
        "store = Store.open(TrackingConfig(), folder=pathlib.Path(sys.argv[1]))\n"
        "run = store.client.create_run(store.experiment_id('shared')).info.run_id\n"
        "for step in range(20): store.log_metrics(run, {'a': step}, step)\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    workers = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], env=environment) for _ in range(3)
    ]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0, 0]
    store = Store.open(TrackingConfig(uri="sqlite:///mlflow.db"), folder=tmp_path, create=False)
    runs = store.client.search_runs([store.experiment_id("shared")])
    assert [run.data.metrics["a"] for run in runs] == [19.0] * 3
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_an_older_schema_is_brought_up_to_date_and_kept(tmp_path: Path) -> None:
    import sqlite3
    from contextlib import closing

    file = tmp_path / "mlflow.db"
    Store.open(TrackingConfig(uri=f"sqlite:///{file}"))
    newest = connection.revision(file)
    with closing(sqlite3.connect(file)) as opened:
        opened.execute("UPDATE alembic_version SET version_num = 'unknown-future'")
        opened.commit()
    with pytest.raises(TrackingError, match="cannot be opened"):
        Store.open(TrackingConfig(uri=f"sqlite:///{file}"))
    assert newest


def test_errors_name_store_and_way_out(store: Store) -> None:
    with pytest.raises(TrackingError, match=r"no run 'nobody'.*Newest runs"):
        store.find("nobody")
    with pytest.raises(TrackingError, match=r"run 0{32}"):
        store.run("0" * 32)
    store.client.delete_experiment(store.experiment_id("gone"))
    with pytest.raises(TrackingError, match="mlflow experiments restore"):
        store.experiment_id("gone")


def test_no_thread_stays(store: Store) -> None:
    assert not [thread.name for thread in threading.enumerate() if thread.name in ("run-writer", "figures")]

"""Runs in a real SQLite store: their tags, the log of a training, many writers at once."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from d2ls.errors import TrackingError
from d2ls.metrics import score
from d2ls.shards import ShardSet
from d2ls.training.callbacks import EvaluationReport, StepReport
from pipeline.config import Recipe
from pipeline.config.tracking import TrackingConfig
from pipeline.tracking import RunWriter, Store
from pipeline.tracking.callback import TrackingCallback
from tests.tracked_runs import log_metrics, make_checkpoint, make_recipe, make_shards, make_store

WRITERS = 5
"""Threads; twenty processes are a slow test."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def recipe(shards: ShardSet) -> Recipe:
    return make_recipe(shards)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("store"))


def test_a_run_has_tags_and_a_description(store: Store, recipe: Recipe, shards: ShardSet) -> None:
    run = store.start_run(recipe, shards.card, "first")
    row = store.run(run)
    assert (row.name, row.status) == ("first", "RUNNING")
    assert row.params["model.stages"] == "1"
    assert row.params["train.clip_norm"] == "1.0"
    shown = {"dataset": "blobs", "protocol": "clean", "stages": "1", "temperature": "0.1", "contrastive": "infonce",
             "dictionary": "dynamic", "backbone": "convnext_atto", "kind": "training"}  # fmt: skip
    assert shown.items() <= row.tags.items()
    assert row.tags["dataset_digest"] == shards.card.digest
    assert row.tags["recipe_digest"] == recipe.digest()
    assert "torch" in row.tags["packages"]
    assert "blobs" in row.tags["mlflow.note.content"]
    files = {file.path for file in store.client.list_artifacts(run)}
    assert files == {"recipe.yaml", "dataset_card.json", "packages.txt"}
    (given,) = store.client.get_run(run).inputs.dataset_inputs
    assert given.dataset.name == "blobs"
    assert shards.card.digest.startswith(given.dataset.digest)
    assert shards.card.digest in given.dataset.profile
    store.end_run(run, end_time=row.start + 90)
    assert (store.run(run).status, store.run(run).seconds) == ("FINISHED", 90)


def test_a_sweep_has_its_trials(store: Store, recipe: Recipe, shards: ShardSet, tmp_path: Path) -> None:
    sweep = store.start_run(recipe, shards.card, "sweep", "sweep")
    for number in (1, 2):
        values = recipe.with_values({"model.stages": number})
        trial = store.start_run(values, shards.card, f"trial-{number}", "trial", parent_run_id=sweep)
        log_metrics(store, trial, {"val/miou": number / 4}, step=7)
        store.end_run(trial)
    rows = store.children(sweep)
    assert [row.name for row in rows] == ["trial-1", "trial-2"]
    assert [row.metrics["val/miou"] for row in rows] == [0.25, 0.5]
    with RunWriter(store.uri, sweep, tmp_path / "spool") as log:
        log.picture("sweep/trials", np.zeros((9, 9, 3), np.uint8))
        log.text("# Report", "report.md")
    assert {file.path for file in store.client.list_artifacts(sweep)} >= {"report.md", "sweep", "recipe.yaml"}
    store.end_run(sweep)


def test_a_training_writes_metrics_and_figures_that_move(
    store: Store, recipe: Recipe, shards: ShardSet, tmp_path: Path
) -> None:
    from d2ls.models.saving import load_bundle

    network, _ = load_bundle(make_checkpoint(tmp_path / "checkpoint", shards, recipe))
    run = store.start_run(recipe, shards.card, "trained")
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
    assert (metrics["speed/images_per_second"], metrics["speed/model_tflops"], metrics["speed/mfu"]) == (
        9,
        20,
        0.5,
    )
    assert metrics["epoch"] == 2
    assert metrics["val/iou/water"] == pytest.approx(score(confusion).iou[2])
    assert {"val/miou", "val/mf1", "val/oa", "train/lr", "dictionary/intra/d0", "best/miou"} <= set(metrics)
    assert len(store.client.get_metric_history(run, "train/loss")) == 6
    pictures = [Path(file.path).name for file in store.client.list_artifacts(run, "images")]
    for key in ("confusion", "class_iou", "predictions", "dictionary"):
        steps = {name.split("+")[2] for name in pictures if name.startswith(f"{key}+")}
        assert steps == {"3", "6"}, key
    newest = {Path(file.path).stem for file in store.client.list_artifacts(run, "figures")}
    assert newest == {"confusion", "class_iou", "predictions", "dictionary"}
    assert not (tmp_path / "spool").exists()


def test_many_writers_share_one_new_store(recipe: Recipe, shards: ShardSet, tmp_path: Path) -> None:
    start = threading.Barrier(WRITERS)
    make_store(tmp_path)

    def work(number: int) -> str:
        store = Store(f"sqlite:///{tmp_path}/mlflow.db", f"file://{tmp_path}/mlartifacts")
        start.wait()
        run = store.start_run(recipe, shards.card, f"trial-{number}")
        log_metrics(store, run, {"a": number})
        store.end_run(run)
        return run

    with ThreadPoolExecutor(WRITERS) as threads:
        result = list(threads.map(work, range(WRITERS)))
    store = make_store(tmp_path)
    runs = store.client.search_runs([store.experiment_id("blobs")])
    assert sorted(run.info.run_id for run in runs) == sorted(result)
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert sorted(run.data.metrics["a"] for run in runs) == list(range(WRITERS))


@pytest.mark.slow
def test_twenty_processes_start_at_once_on_a_store_that_is_not_there_yet(
    recipe: Recipe, tmp_path: Path
) -> None:
    script = (
        "import sys, pathlib, time\n"
        "from pipeline.tracking import Store\n"
        "from pipeline.config import load_recipe\n"
        "from pipeline.config.tracking import TrackingConfig\n"
        "from d2ls.shards import ShardSet\n"
        "import mlflow\n"
        "folder = pathlib.Path(sys.argv[1]); recipe = load_recipe(folder / 'recipe.yaml')\n"
        "card = ShardSet.open(recipe.shards.uri).card\n"
        "(folder / f'ready-{sys.argv[2]}').touch()\n"
        "while len(list(folder.glob('ready-*'))) < 20: time.sleep(0.05)\n"
        "store = Store.open(TrackingConfig(uri='sqlite:///mlflow.db'), folder=folder)\n"
        "store.end_run(store.start_run(recipe, card, 'one'))\n"
    )
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    arguments = [sys.executable, "-c", script, str(tmp_path)]
    workers = [subprocess.Popen([*arguments, str(number)]) for number in range(20)]
    assert [worker.wait(timeout=500) for worker in workers] == [0] * 20
    store = Store.open(TrackingConfig(uri="sqlite:///mlflow.db"), folder=tmp_path, create=False)
    runs = store.client.search_runs([store.experiment_id("blobs")])
    assert [run.info.status for run in runs] == ["FINISHED"] * 20
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_long_texts_and_many_tags_fit_the_columns_of_every_database(
    store: Store, recipe: Recipe, shards: ShardSet, tmp_path: Path
) -> None:
    run = store.start_run(recipe.with_values({"description": "long " * 3000}), shards.card, "long")
    store.set_tags(run, {f"tag-{number}": "x" * 6000 for number in range(250)})
    with RunWriter(store.uri, run, tmp_path / "spool") as log:
        log.tags({"mlflow.note.content": "report " * 3000})
        log.metrics(
            {f"iou/class {number}": number for number in range(1500)} | {"iou/absent": float("nan")}, 1
        )
        log.metrics({"val/iou/absent (no pixel)": float("nan"), "val/iou/water, flat": 0.5}, 0)
    row = store.run(run)
    assert max(map(len, row.tags.values())) == 5000
    assert row.tags["mlflow.note.content"].endswith("(cut: MLflow keeps 5000 characters here)")
    assert len([tag for tag in row.tags if tag.startswith("tag-")]) == 250
    assert len(row.metrics) == 1501
    assert row.metrics["val/iou/water_ flat"] == 0.5


def test_errors_name_store_and_way_out(store: Store) -> None:
    with pytest.raises(TrackingError, match=r"run 0{32}"):
        store.run("0" * 32)
    store.client.delete_experiment(store.experiment_id("gone"))
    with pytest.raises(TrackingError, match="mlflow experiments restore"):
        store.experiment_id("gone")


def test_no_thread_stays(store: Store) -> None:
    assert not [thread.name for thread in threading.enumerate() if thread.name in ("run-writer", "figures")]

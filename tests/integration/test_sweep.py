"""The sweep through its command line: real Ray, Tune, Train and MLflow, killed on the way and resumed."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.config.tracking import TrackingConfig
from pipeline.tracking import Store
from tests.sweep_world import make_place, run, sweep, tracked, trials

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2000),  # several sweeps one after the other; a busy machine is no failure
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with raw scenes and a recipe."""
    return make_place(tmp_path_factory.mktemp("sweep"))


def kill_after_first_trial(place: Path, name: str, *words: str) -> None:
    """Starts a sweep and kills its driver as soon as a trial is finished and another one is not."""
    with (place / "killed.log").open("w") as log:
        driver = subprocess.Popen(
            sweep("tiny.yaml", "--name", name, *words), cwd=place, stdout=log, stderr=log
        )
        try:
            deadline = time.monotonic() + 400
            while not any(trial["status"] == "finished" for trial in trials(place, name).values()):
                assert driver.poll() is None, (place / "killed.log").read_text()
                assert time.monotonic() < deadline, "no trial finished"
                time.sleep(0.1)
        finally:
            driver.send_signal(signal.SIGKILL)
            driver.wait()


def test_sweep_killed_and_resumed_ends_with_a_champion(place: Path):
    kill_after_first_trial(place, "first", "sweep.concurrent=1", "--repeat", "2")
    before = {key: trial for key, trial in trials(place, "first").items() if trial["status"] == "finished"}
    assert 1 <= len(before) < 4

    text = run(place, "--resume", "first")

    after = trials(place, "first")
    assert len(after) == 5, "four configurations, and the best one with a second seed"
    assert {trial["status"] for trial in after.values()} == {"finished"}
    assert all(after[key] == trial for key, trial in before.items()), "a finished trial was touched"
    assert "champion" in text
    assert "the noise of" in text, "--repeat was forgotten"
    store = Store.open(TrackingConfig(), folder=place)
    parent = tracked(store, place, "first")
    children = store.children(parent.run_id)
    assert parent.status == "FINISHED"
    assert sorted(row.status for row in children) == ["FINISHED"] * 6
    assert len({row.name for row in children}) == 6, "a run is doubled"
    assert all("select/miou" in row.metrics for row in children)
    champion = store.champion("d2ls-tiny")
    assert champion is not None
    assert champion.run_id in {row.run_id for row in children}


def test_model_loads_in_a_fresh_process_without_pickle(place: Path):
    code = (
        "import mlflow, numpy as np; m = mlflow.pyfunc.load_model('models:/d2ls-tiny@champion');"
        "out = m.predict(np.random.default_rng(0).integers(0, 255, (1, 70, 81, 3), dtype=np.uint8));"
        "print('shape', np.asarray(out).shape, np.asarray(out).dtype)"
    )
    environment = {
        **os.environ,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_TRACKING_URI": f"sqlite:///{place / 'mlflow.db'}",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    assert "shape (1, 70, 81) uint8" in done.stdout, done.stderr


def test_the_plan_says_what_would_be_tried_and_how_long_it_takes(place: Path):
    before = sorted(place.rglob("*"))
    text = run(place, "tiny.yaml", "--plan", "--repeat", "3")
    assert "Plan: 4 trial(s) of 2 epoch(s)" in text
    assert "with 2 further seed(s)" in text
    assert "temperature=0.5 stages=1" in text
    assert re.search(
        r"about \d+ (s|min): a trial \d+ s, final training and evaluation \d+ s, [\d.]+ s a step of 4", text
    ), text
    assert sorted(place.rglob("*")) == before, "a plan leaves nothing"


def test_pruned_trials_end_and_free_their_workers(place: Path):
    run(
        place, "tiny.yaml", "--name", "pruned", "sweep.scheduler=asha", "sweep.grace_epochs=1", "sweep.final=false",
        "sweep.reduction_factor=2", "train.epochs=4", "sweep.concurrent=1",
        "sweep.space={train.optimizer.lr: {values: [1e-2, 1e-8, 1e-7, 1e-9]}}",
    )  # fmt: skip
    ended = trials(place, "pruned")
    assert len(ended) == 4
    assert {trial["status"] for trial in ended.values()} == {"finished", "pruned"}
    store = Store.open(TrackingConfig(), folder=place)
    rows = {row.name: row.status for row in store.children(tracked(store, place, "pruned").run_id)}
    for trial in ended.values():
        assert rows[trial["name"]] == ("FINISHED" if trial["status"] == "finished" else "KILLED")


def test_the_best_one_of_a_search_over_ranges_is_repeated(place: Path):
    text = run(
        place, "tiny.yaml", "--name", "ranges", "--repeat", "2", "sweep.search=tpe", "sweep.trials=2",
        "sweep.final=false", "train.epochs=1",
        "sweep.space={train.optimizer.lr: {low: 1e-4, high: 1e-2, log: true}}",
    )  # fmt: skip
    assert len(trials(place, "ranges")) == 3
    assert "2 seeds" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tiny.yaml", "--name", "refused", "cluster.workers=512", "train.global_batch=512"], "does not fit"),
        (["tiny.yaml", "--name", "first"], "taken"),
        (["tiny.yaml", "--resume", "nothing"], "no such sweep"),
        (["--resume", "first", "train.epochs=9"], "train.epochs was 2, is 9"),
        (["tiny.yaml", "sweep.space.model.stagse={values: [1]}"], "model.stages"),
        (["tiny.yaml", "roles.select=nothing"], "no split"),
        (["nowhere.yaml"], "no such recipe"),
    ],
)
def test_wrong_input_is_refused_without_a_traceback(place: Path, words: list[str], message: str):
    text = run(place, *words, status=1)
    assert message in text
    assert "Traceback" not in text
    assert not (place / "runs" / "refused").exists(), "its name is free"

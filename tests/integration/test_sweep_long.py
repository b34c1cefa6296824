"""Long sweeps in separate processes: real epochs of more than two seconds, pruned, killed and resumed."""

import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import yaml

from pipeline.config.tracking import TrackingConfig
from pipeline.tracking import Store
from pipeline.training.run_folder import RunFolder
from pipeline.tuning.halving import Halving
from pipeline.tuning.report import Trial
from tests.tiny_sweeps import TINY, make_place, run, sweep, tracked, trials

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

PRUNING = [
    "sweep.scheduler=asha", "sweep.grace_epochs=1", "sweep.reduction_factor=2", "sweep.final=false",
    "tracking.figures_every=100",
]  # fmt: skip
RATES = "sweep.space={train.optimizer.lr: {values: [1e-3, 1e-8, 3e-3, 1e-9]}}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder whose recipe has epochs of two seconds and more, as every sample is seen in many steps."""
    folder = make_place(tmp_path_factory.mktemp("long"))
    slow = {**TINY["train"], "epochs": 4, "global_batch_size": 1}
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**TINY, "train": slow}))
    return folder


def check_pruned(place: Path, name: str, epochs: int = 4, ahead: int = 0) -> dict[str, dict]:
    """Checks that all four records of every trial agree, and that exactly the trials were pruned that should be.

    A worker group continues to train while Tune decides: it may be some epochs ahead of the record.
    """
    ended = trials(place, name)
    assert {trial["status"] for trial in ended.values()} == {"finished", "pruned"}
    store = Store.open(TrackingConfig(), folder=place)
    rows = {row.name: row.status for row in store.children(tracked(store, place, name).run_id)}
    assert rows.keys() == {trial["name"] for trial in ended.values()}
    for trial in ended.values():
        pruned = trial["status"] == "pruned"
        folder = RunFolder.of(str(place / "runs"), trial["name"])
        assert rows[trial["name"]] == ("KILLED" if pruned else "FINISHED")
        assert folder.metadata()["state"] == trial["status"]
        assert trial["epoch"] <= len(folder.epochs()) <= trial["epoch"] + ahead
        assert trial["epoch"] < epochs if pruned else trial["epoch"] == epochs
    best = max(ended.values(), key=lambda trial: trial["score"])
    rule = Halving(1, 2, epochs)
    assert best["status"] == "finished" or rule.stops(
        Trial(**best), [Trial(**trial) for trial in ended.values() if trial is not best]
    )
    return ended


@pytest.mark.parametrize("concurrent", [1, 2])
@pytest.mark.parametrize("search", ["grid", "tpe"])
def test_pruned_trials_stop_and_free_their_place(place: Path, search: str, concurrent: int):
    name = f"{search}-{concurrent}"
    space = (
        RATES if search == "grid" else "sweep.space={train.optimizer.lr: {low: 1e-9, high: 3e-3, log: true}}"
    )
    more = [] if search == "grid" else ["sweep.search=tpe", "sweep.num_trials=5"]
    said = run(
        place,
        "tiny.yaml",
        "--name",
        name,
        *PRUNING,
        space,
        *more,
        f"sweep.max_concurrent_trials={concurrent}",
    )
    ended = check_pruned(place, name)
    assert len(ended) == (4 if search == "grid" else 5)
    assert "Could not re-use" not in said


def test_a_pruned_trial_with_a_worker_group_ends_its_workers(place: Path):
    words = [*PRUNING, "cluster.workers=2", "cluster.cpus_per_worker=0.5", "train.global_batch_size=2"]
    space = "sweep.space={train.optimizer.lr: {values: [3e-3, 1e-9]}}"
    run(place, "tiny.yaml", "--name", "groups", *words, space, "sweep.max_concurrent_trials=1", "loss.contrastive=none",
        "sweep.overrides={}")  # fmt: skip
    check_pruned(place, "groups", ahead=2)


def kill_when(driver: "subprocess.Popen[bytes]", ready, log: Path) -> None:
    """Kills a sweep's driver as soon as a condition holds; its processes end with it."""
    below = []
    try:
        deadline = time.monotonic() + 600
        while not ready():
            assert driver.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.1)
        below = psutil.Process(driver.pid).children(recursive=True)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        psutil.wait_procs(below, timeout=60)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_killed_sweep_goes_on_as_the_undisturbed_one(place: Path, seed: int):
    """Kills at a random moment. With one trial at a time, pruning depends only on scores."""
    words = ["tiny.yaml", *PRUNING, RATES, "sweep.max_concurrent_trials=1"]
    if not trials(place, "undisturbed"):
        run(place, *words, "--name", "undisturbed")
    name, log = f"killed-{seed}", place / f"killed-{seed}.log"
    with log.open("w") as out:
        driver = subprocess.Popen(sweep(*words, "--name", name), cwd=place, stdout=out, stderr=out)
        epochs = sum(trial["epoch"] for trial in trials(place, "undisturbed").values())
        moment = random.Random(seed).uniform(1, epochs - 1)
        kill_when(
            driver, lambda: sum(trial["epoch"] for trial in trials(place, name).values()) >= moment, log
        )
    run(place, "--resume", name)
    ended = check_pruned(place, name)
    expected = trials(place, "undisturbed")
    same = ("status", "curve", "score", "epoch", "best_epoch")
    assert {key: [trial[item] for item in same] for key, trial in ended.items()} == {
        key: [trial[item] for item in same] for key, trial in expected.items()
    }

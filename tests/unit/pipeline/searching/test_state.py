"""Going on with a sweep: by its own recipe, with what may change, never beside a process that still runs it."""

import json
import socket
import subprocess
import sys

import psutil
import pytest

from d2ls.errors import ConfigError
from pipeline import driver
from pipeline.config import parse_recipe
from pipeline.searching.state import SweepState
from tests.train_world import recipe_values


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "shards").mkdir()
    return parse_recipe(recipe_values(tmp_path, sweep={"search": "random", "trials": 4})).anchored()


@pytest.fixture
def state(recipe):
    SweepState("one", recipe.to_dict(), repeat=3).save()
    return SweepState.load(recipe.storage, "one")


def test_a_sweep_goes_on_with_its_own_recipe_and_seeds(state, recipe):
    assert state.resumed() == recipe
    assert state.repeat == 3
    assert state.driver == driver.this_process()


def test_what_decides_no_result_may_change(state, recipe):
    changes = [
        "cluster.workers=1",
        "sweep.trials=9",
        "sweep.concurrent=1",
        "loader.workers=1",
        "model.stages=1",
    ]
    changed = {"cluster.workers": 1, "sweep.trials": 9, "sweep.concurrent": 1, "loader.workers": 1}
    assert state.resumed(changes) == recipe.with_values(changed)


def test_the_storage_it_was_found_in_is_not_a_change(state, recipe):
    assert state.resumed(["storage=elsewhere/runs"]) == recipe


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.stages=3", "model.stages was 1, is 3"),
        ("train.epochs=9", "train.epochs was 3, is 9"),
        ("sweep.search=tpe", "sweep.search was 'random', is 'tpe'"),
    ],
)
def test_another_experiment_is_refused(state, override, words):
    with pytest.raises(ConfigError, match=words):
        state.resumed([override])


def test_a_sweep_in_the_hands_of_a_live_process_is_left_alone(state, recipe, tmp_path):
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = f"{socket.gethostname()}:{other.pid}:{psutil.Process(other.pid).create_time():.2f}"
    file = tmp_path / "runs" / "one" / "sweep.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "driver": name}))
    with pytest.raises(ConfigError, match=f"run by process {other.pid}"):
        SweepState.load(recipe.storage, "one").resumed()
    other.communicate(b"\n")
    assert SweepState.load(recipe.storage, "one").resumed() == recipe


def test_no_such_sweep_names_those_there_are(state, recipe):
    with pytest.raises(ConfigError, match=r"--resume two: no such sweep .* There are: one"):
        SweepState.load(recipe.storage, "two")

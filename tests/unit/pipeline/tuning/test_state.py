"""Resuming a sweep: with its own recipe and allowed changes, and never while another process runs it."""

import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from d2ls.errors import ConfigError
from pipeline.config import parse_recipe
from pipeline.tracking import Store, connection
from pipeline.tuning import sweep
from pipeline.tuning.state import SweepState, only_driver, resume_command
from tests.tiny_recipes import recipe_values


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "shards").mkdir()
    return parse_recipe(recipe_values(tmp_path, sweep={"search": "random", "num_trials": 4})).anchored()


@pytest.fixture
def state(recipe):
    SweepState("one", recipe.to_dict(), seeds=3).save()
    return SweepState.load(recipe.output_dir, "one")


def test_a_sweep_goes_on_with_its_own_recipe_and_seeds(state, recipe):
    assert state.resumed() == recipe
    assert state.seeds == 3


def test_the_printed_command_finds_the_sweep_with_the_default_recipe(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    command = f"python -m pipeline.sweep --resume one 'output_dir={tmp_path}/all runs'"
    assert resume_command("all runs", "one") == command
    assert (
        resume_command("s3://b/runs", "one") == "python -m pipeline.sweep --resume one output_dir=s3://b/runs"
    )
    assert resume_command("runs", "one") == command.rpartition(" 'out")[0]


def test_what_decides_no_result_may_change(state, recipe):
    changes = [
        "cluster.workers=1",
        "sweep.num_trials=9",
        "sweep.max_concurrent_trials=1",
        "loader.workers=1",
        "model.stages=1",
    ]
    changed = {
        "cluster.workers": 1,
        "sweep.num_trials": 9,
        "sweep.max_concurrent_trials": 1,
        "loader.workers": 1,
    }
    assert state.resumed(changes) == recipe.with_values(changed)


def test_a_sweep_goes_on_where_it_is_found(state, recipe, tmp_path):
    (tmp_path / "runs").rename(tmp_path / "moved")
    moved = str(tmp_path / "moved")
    result = SweepState.load(moved, "one").resumed([f"output_dir={moved}"])
    assert result == recipe.with_values({"output_dir": moved})


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


OLD, NEW, FILE = "http://10.0.0.1:5000", "http://10.0.0.2:5000", "sqlite:////work/mlflow.db"


@pytest.mark.parametrize(
    ("given", "logged_to", "now", "expected"),
    [
        (None, OLD, NEW, NEW),
        (None, OLD, "", OLD),
        (OLD, OLD, NEW, OLD),
        (None, FILE, "", FILE),
        (None, FILE, NEW, FILE),
    ],
    ids=["new head", "no variable", "the recipe names it", "file", "file, and a server later"],
)
def test_a_sweep_goes_on_in_its_store_also_when_the_head_is_a_new_machine(
    recipe, tmp_path, monkeypatch, given, logged_to, now, expected
):
    def resolve(config):
        return Store(connection.resolve_uri(config.uri, Path("/work")))

    monkeypatch.setattr(sweep.Store, "open", resolve)
    monkeypatch.setattr(sweep.tracked_run, "open_run", lambda *values: "run")
    monkeypatch.setattr(sweep.tracked_run, "settle", lambda *values: None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", logged_to if logged_to == OLD else "")
    first = recipe.with_values({"tracking.uri": given})
    with sweep.open_sweep("one", first, 1, SimpleNamespace(card=None), None, Console(quiet=True)) as opened:
        assert opened.recipe.tracking.uri == logged_to, "trials on other nodes do not have the variable"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", now)
    assert resolve(SweepState.load(recipe.output_dir, "one").resumed().tracking).uri == expected


HOLD = """
import sys
from pipeline.tuning.state import only_driver
with only_driver(sys.argv[1], "one"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("uri", ["runs", "s3://bucket/runs"])
def test_a_sweep_in_the_hands_of_a_live_process_is_left_alone(uri, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    where = uri if "://" in uri else str(tmp_path / uri)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, where], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match="one is being run by another process"), only_driver(where, "one"):
        pass
    other.kill()
    other.communicate()
    with only_driver(where, "one"):
        pass


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"recipe": 1}'])
def test_a_damaged_state_names_the_file(state, recipe, tmp_path, content):
    (tmp_path / "runs" / "one" / "sweep.json").write_text(content)
    with pytest.raises(ConfigError, match=r"runs/one/sweep\.json: not the state of a sweep"):
        SweepState.load(recipe.output_dir, "one")


def test_no_such_sweep_names_those_there_are(state, recipe):
    with pytest.raises(ConfigError, match=r"--resume two: no such sweep .* There are: one"):
        SweepState.load(recipe.output_dir, "two")

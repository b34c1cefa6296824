import json
import os
import socket
import subprocess
import sys

import pytest

from d2ls.errors import ConfigError
from pipeline.training import run_folder
from pipeline.training.run_folder import RunFolder
from tests.train_world import tiny_recipe


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "shards").mkdir()
    return tiny_recipe(tmp_path)


@pytest.fixture
def folder(recipe):
    made = RunFolder.of(recipe.storage, "one")
    made.create(recipe)
    return made


def test_names_are_unique_and_readable(recipe):
    names = {run_folder.new_name(recipe) for _ in range(20)}
    assert len(names) == 20
    assert all(name.startswith("tiny-2") for name in names)


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "s3:x", "q?"])
def test_a_name_that_is_no_folder_is_refused(name):
    with pytest.raises(ConfigError, match="run name"):
        RunFolder.of("runs", name)


def test_a_taken_name_is_refused(folder, recipe):
    with pytest.raises(ConfigError, match=r"one is there already.*--resume one"):
        folder.create(recipe)


def test_a_foreign_folder_is_not_written_to(recipe, tmp_path):
    (tmp_path / "runs" / "photos").mkdir(parents=True)
    (tmp_path / "runs" / "photos" / "cat.jpg").write_bytes(b"")
    with pytest.raises(ConfigError, match="photos is there already"):
        RunFolder.of(recipe.storage, "photos").create(recipe)


def test_the_recipe_comes_back(folder, recipe):
    assert folder.recipe() == recipe
    assert folder.facts()["recipe_digest"] == recipe.digest()
    with pytest.raises(ConfigError, match="no run to resume"):
        RunFolder.of(recipe.storage, "none").recipe()


def test_epochs_done_again_replace_those_before(folder):
    for epoch, loss in ((1, 3.0), (2, 2.0), (3, 1.0), (2, 2.5)):
        folder.add_epoch({"epoch": epoch, "train/loss": loss})
    assert [(row["epoch"], row["train/loss"]) for row in folder.epochs()] == [(1, 3.0), (2, 2.5)]


def test_a_run_in_the_hands_of_a_live_process_is_left_alone(folder):
    folder.claim()
    folder.claim()  # this very process may
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    folder.note(pid=other.pid, started_ticks=run_folder._ticks(other.pid))
    with pytest.raises(ConfigError, match=f"trained by process {other.pid}"):
        folder.claim()
    other.communicate(b"\n")
    folder.claim()
    facts = folder.facts()
    assert (facts["state"], facts["pid"], facts["host"]) == ("running", os.getpid(), socket.gethostname())


def test_best_names_the_checkpoint(folder, tmp_path):
    assert folder.best() is None
    pointer = {"checkpoint": "step-00000004", "epoch": 2, "score": 0.5, "scores": {}}
    (tmp_path / "runs" / "one" / "checkpoints" / "best.json").write_text(json.dumps(pointer))
    assert folder.best()["uri"] == f"{folder.checkpoints}/step-00000004"


def test_a_failure_is_told_once(folder):
    folder.fail(ConfigError("wrong"))
    assert folder.failure() == {"type": "ConfigError", "message": "wrong"}
    folder.clear_failure()
    assert folder.failure() is None

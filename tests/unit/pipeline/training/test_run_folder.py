import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from d2ls import storage
from d2ls.errors import ConfigError, StorageError
from pipeline import process_identity
from pipeline.training import run_folder
from pipeline.training.run import check_resume
from pipeline.training.run_folder import RunFolder
from tests.tiny_recipes import tiny_recipe


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "shards").mkdir()
    return tiny_recipe(tmp_path)


@pytest.fixture
def folder(recipe):
    made = RunFolder.of(recipe.output_dir, "one")
    made.create(recipe)
    return made


def test_names_are_unique_and_readable(recipe):
    names = {run_folder.new_name(recipe) for _ in range(20)}
    assert len(names) == 20
    assert all(name.startswith("tiny-2") for name in names)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../up",
        "a/b",
        ".hidden",
        "-x",
        "s3:x",
        "q?",
        "two words",
        "a\nb",
        "a\x00",
        "a" * 300,
        "straße",
        "a\\b",
    ],
)
def test_a_name_that_cannot_be_a_folder_everywhere_is_refused(name):
    with pytest.raises(ConfigError, match=r"^run name '.{0,150}: use up to 128 of the letters"):
        RunFolder.of("runs", name)


@pytest.mark.parametrize("name", ["a", "a" * 128, "first-try_2.0", "_x"])
def test_a_plain_name_is_taken(name):
    assert RunFolder.of("runs", name).name == name


def test_a_taken_name_is_refused(folder, recipe):
    with pytest.raises(ConfigError, match=r"one exists already.*--resume one"):
        folder.create(recipe)


def test_a_foreign_folder_is_not_written_to(recipe, tmp_path):
    (tmp_path / "runs" / "photos").mkdir(parents=True)
    (tmp_path / "runs" / "photos" / "cat.jpg").write_bytes(b"")
    with pytest.raises(ConfigError, match="photos exists already"):
        RunFolder.of(recipe.output_dir, "photos").create(recipe)


@pytest.mark.parametrize("written", [0, 1])
def test_a_trial_that_was_killed_while_its_folder_was_made_can_still_run(recipe, monkeypatch, written):
    """The process dies within the next write; its temporary file stays. Then the sweep is resumed."""
    folder, write, calls = RunFolder.of(recipe.output_dir, "one"), storage.write_bytes, []

    def dies(uri, content, **options):
        if len(calls) == written:
            target = storage.local_path(uri)
            (target.parent / f".{target.name}.0a1b2c3d.tmp").write_bytes(content[:9])
            raise KeyboardInterrupt
        calls.append(uri)
        write(uri, content, **options)

    with monkeypatch.context() as patched:
        patched.setattr(storage, "write_bytes", dies)
        with pytest.raises(KeyboardInterrupt):
            folder.create(recipe)
    if not folder.exists():
        folder.create(recipe)
    check_resume(recipe, folder)
    folder.claim()
    assert folder.metadata()["state"] == "running"


def test_the_recipe_comes_back(folder, recipe):
    assert folder.recipe() == recipe
    assert folder.metadata()["recipe_digest"] == recipe.digest()
    with pytest.raises(ConfigError, match=r"no run to resume here\. There are: one"):
        RunFolder.of(recipe.output_dir, "none").recipe()


def test_epochs_done_again_replace_those_before(folder):
    for epoch, loss in ((1, 3.0), (2, 2.0), (3, 1.0), (2, 2.5)):
        folder.add_epoch({"epoch": epoch, "train/loss": loss})
    assert [(row["epoch"], row["train/loss"]) for row in folder.epochs()] == [(1, 3.0), (2, 2.5)]


def test_epochs_that_only_the_checkpoint_knows_are_added(folder):
    for epoch in (2, 3):
        folder.add_epoch({"epoch": epoch, "train/loss": 1.0, "speed/data_share": 0.5})
    folder.backfill_history([{"epoch": 1, "train/loss": 3.0}, {"epoch": 2, "train/loss": 1.0}])
    assert [(row["epoch"], row["train/loss"]) for row in folder.epochs()] == [(1, 3.0), (2, 1.0), (3, 1.0)]
    assert "speed/data_share" in folder.epochs()[1], "what was written stays"
    folder.add_epoch({"epoch": 4, "step": 7})  # a time budget ended it
    folder.backfill_history([{"epoch": 4, "step": 8}])
    assert folder.epochs()[-1] == {"epoch": 4, "step": 8}


def test_a_history_that_cannot_be_read_is_not_taken_for_none(folder, monkeypatch):
    folder.add_epoch({"epoch": 1, "train/loss": 3.0})

    def fails(uri):
        raise StorageError(f"{uri}: 503 Slow Down")

    with monkeypatch.context() as patched:
        patched.setattr(storage, "read_bytes", fails)
        with pytest.raises(StorageError, match="503"):
            folder.add_epoch({"epoch": 2, "train/loss": 2.0})
    assert [row["epoch"] for row in folder.epochs()] == [1]


def test_two_writers_lose_nothing_of_each_other(folder):
    def write(who):
        for number in range(10):
            RunFolder(folder.uri, folder.name).update(**{f"{who}-{number}": number})

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(write, ["driver", "sweep"]))
    assert len([key for key in folder.metadata() if key.startswith(("driver-", "sweep-"))]) == 20


def test_of_runs_that_take_one_name_at_once_one_gets_it(recipe):
    def take(number):
        try:
            RunFolder.of(recipe.output_dir, "taken").create(recipe.with_values({"seed": number}))
        except ConfigError:
            return None
        return number

    with ThreadPoolExecutor(8) as threads:
        (winner,) = [number for number in threads.map(take, range(8)) if number is not None]
    assert RunFolder.of(recipe.output_dir, "taken").recipe().seed == winner


def test_what_the_sweep_pruned_stays_pruned(folder):
    folder.end(run_folder.FAILED)
    assert folder.metadata()["state"] == "failed"
    folder.update(state=run_folder.PRUNED)
    folder.end(run_folder.FINISHED)
    assert folder.metadata()["state"] == "pruned"


def test_a_run_in_the_hands_of_a_live_process_is_left_alone(folder):
    folder.claim()
    folder.claim()  # this very process may
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    folder.update(driver=process_identity.name_of(other.pid))
    with pytest.raises(ConfigError, match=f"trained by process {other.pid}"):
        folder.claim()
    other.communicate(b"\n")
    folder.claim()
    metadata = folder.metadata()
    assert (metadata["state"], metadata["driver"]) == ("running", process_identity.this_process())


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

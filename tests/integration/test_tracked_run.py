"""The MLflow run of a run folder in a real store: found by its id, completed after outage or kill, never mixed up."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from mlflow.exceptions import MlflowException

from d2ls import storage
from d2ls.errors import ConfigError, TrackingError
from d2ls.shards import ShardSet
from pipeline import diagnosis, process_identity
from pipeline.config import Recipe
from pipeline.registry import register_checkpoint
from pipeline.tracking import RunWriter, Store, connection
from pipeline.training import tracked_run
from pipeline.training.run_folder import RunFolder
from tests.tracked_runs import make_checkpoint, make_recipe, make_shards, make_store


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def recipe(shards: ShardSet, store: Store, tmp_path: Path) -> Recipe:
    return make_recipe(shards, **{"output_dir": str(tmp_path / "runs"), "tracking.uri": store.uri})


def begin(recipe: Recipe, name: str) -> RunFolder:
    """Makes a run folder, or takes an existing one, as `pipeline.train` does."""
    folder = RunFolder.of(recipe.output_dir, name)
    if not folder.exists():
        folder.create(recipe)
    folder.claim()
    return folder


def train(recipe: Recipe, shards: ShardSet, folder: RunFolder, *steps: int) -> str:
    """Logs as a training would; returns the MLflow run."""
    with tracked_run.tracked_run(recipe, shards.card, folder, "training") as (uri, run_id):
        with RunWriter(uri, run_id, folder.spool) as log:
            for step in steps:
                log.metrics({"train/loss": 1 / step}, step)
        return run_id


def dead_process() -> str:
    """Returns the identity of a process that was killed."""
    return process_identity.this_process().rsplit(":", 2)[0] + ":4194305:1"


def points(store: Store, run_id: str) -> list[int]:
    return [point.step for point in store.client.get_metric_history(run_id, "train/loss")]


def test_two_trainings_of_one_name_are_two_runs(
    recipe: Recipe, shards: ShardSet, store: Store, tmp_path: Path
) -> None:
    here = train(recipe, shards, begin(recipe, "first"), 1, 2)
    elsewhere = recipe.with_values({"output_dir": str(tmp_path / "other")})
    there = train(elsewhere, shards, begin(elsewhere, "first"), 1, 2, 3)
    assert here != there
    assert (points(store, here), points(store, there)) == ([1, 2], [1, 2, 3])


def test_a_killed_training_continues_its_run_and_the_record_of_its_end_is_removed(
    recipe: Recipe, shards: ShardSet, store: Store
) -> None:
    folder = begin(recipe, "killed")
    run_id = tracked_run.open_run(store, recipe, shards.card, folder, "training")
    with RunWriter(store.uri, run_id, folder.spool) as log:
        for step in (1, 2, 3):
            log.metrics({"train/loss": 1 / step}, step)
    writer = RunWriter(store.uri, run_id, folder.spool, connect=away)
    writer.metrics({"train/loss": 1 / 4}, 4)
    assert writer.close(timeout=0.1) == 1
    assert diagnosis.check_runs(store, recipe.output_dir) == [], "its process lives"
    folder.update(driver=dead_process())
    (result,) = diagnosis.check_runs(store, recipe.output_dir)
    assert "killed: 1 waiting log entries sent" in result.text
    assert "--resume killed" in result.text
    row = store.run(run_id)
    assert (row.status, "has ended" in row.tags["d2ls.end"]) == ("KILLED", True)
    assert diagnosis.check_runs(store, recipe.output_dir) == []

    folder.claim()
    assert train(recipe, shards, folder, 3, 4, 5) == run_id  # from a checkpoint of step 2
    row = store.run(run_id)
    assert row.status == "FINISHED"
    assert "d2ls.end" not in row.tags
    assert sorted(points(store, run_id)) == [1, 2, 3, 4, 5]


def test_a_run_that_was_opened_and_never_begun_is_closed(
    recipe: Recipe, shards: ShardSet, store: Store
) -> None:
    folder = RunFolder.of(recipe.output_dir, "opened")
    folder.create(recipe)
    run_id = tracked_run.open_run(store, recipe, shards.card, folder, "trial")  # by a sweep, for its trial
    assert diagnosis.check_runs(store, recipe.output_dir) == []
    folder.update(driver=dead_process())
    assert len(diagnosis.check_runs(store, recipe.output_dir)) == 1
    assert store.run(run_id).status == "KILLED"


def away(uri: str) -> "Store":
    raise MlflowException("API request to http://mlflow failed with exception connection refused")


def test_an_end_that_mlflow_did_not_receive_is_sent_later(
    recipe: Recipe, shards: ShardSet, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begin(recipe, "unheard")
    with tracked_run.tracked_run(recipe, shards.card, folder, "trial") as (uri, run_id):
        monkeypatch.setattr(connection, "connect", away)
        log = RunWriter(uri, run_id, folder.spool)
        log.metrics({"train/loss": 0.5}, 1)
        assert log.close(timeout=0.2) == 1
    monkeypatch.undo()
    assert (folder.metadata()["state"], store.run(run_id).status) == ("finished", "RUNNING")
    (result,) = diagnosis.check_runs(store, recipe.output_dir)
    assert "1 waiting log entries" in result.text
    row = store.run(run_id)
    assert (row.status, row.metrics) == ("FINISHED", {"train/loss": 0.5})


def test_entries_of_a_worker_whose_machine_is_gone_are_in_the_storage(
    recipe: Recipe, shards: ShardSet, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The server is down when a trial ends on another node. A file system stands in for the object store."""
    with monkeypatch.context() as patched:
        patched.setattr(storage, "is_local", lambda uri: False)
        remote = tmp_path / "remote"
        (remote / "spool").mkdir(parents=True)  # object stores have no folders
        folder = RunFolder(remote.as_uri(), "remote")
        folder.update(
            state="finished", run_id=store.start_run(recipe, shards.card, "remote"), store=store.uri
        )
        run_id = folder.metadata()["run_id"]
        log = RunWriter(store.uri, run_id, folder.spool, connect=away)
        log.metrics({"train/loss": 0.5}, 1)
        log.picture("confusion", np.zeros((8, 8, 3), dtype=np.uint8), 1)
        assert log.close(timeout=0.2) == 2
        folder.keep_queue()
        shutil.rmtree(folder.spool)  # with the machine
        with monkeypatch.context() as down:
            down.setattr(connection, "connect", away)
            with pytest.raises(TrackingError, match="connection refused"):
                tracked_run.settle(store, folder)
        assert len(folder.kept_queue()) == 3, "they wait where every machine finds them"
        assert tracked_run.settle(store, folder) == 2
        assert folder.kept_queue() == []
    row = store.run(run_id)
    assert (row.status, row.metrics) == ("FINISHED", {"train/loss": 0.5})
    assert len(store.client.list_artifacts(run_id, "images")) == 2


def test_entries_for_another_store_wait_for_that_store(
    recipe: Recipe, shards: ShardSet, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = begin(recipe, "elsewhere")
    with tracked_run.tracked_run(recipe, shards.card, folder, "training") as (uri, run_id):
        monkeypatch.setattr(connection, "connect", away)
        log = RunWriter(uri, run_id, folder.spool)
        log.metrics({"train/loss": 0.5}, 1)
        assert log.close(timeout=0.2) == 1
    monkeypatch.undo()
    (result,) = diagnosis.check_runs(make_store(tmp_path), recipe.output_dir)
    assert (result.status, store.uri in result.text) == ("error", True)
    diagnosis.check_runs(store, recipe.output_dir)
    row = store.run(run_id)
    assert (row.status, row.metrics) == ("FINISHED", {"train/loss": 0.5})


def test_a_pruned_trial_is_killed_in_mlflow_and_says_why(
    recipe: Recipe, shards: ShardSet, store: Store
) -> None:
    folder = begin(recipe, "pruned")
    run_id = tracked_run.open_run(store, recipe, shards.card, folder, "trial")
    folder.update(state="pruned", reason="pruned by asha after epoch 1")
    tracked_run.settle(store, folder)
    row = store.run(run_id)
    assert (row.status, row.tags["d2ls.end"]) == ("KILLED", "pruned by asha after epoch 1")


def test_no_location_is_taken_from_a_tag(
    recipe: Recipe, shards: ShardSet, store: Store, tmp_path: Path
) -> None:
    folder = begin(recipe, "tagged")
    run_id = train(recipe, shards, folder, 1)
    spool = tmp_path / "elsewhere" / "spool"
    writer = RunWriter(store.uri, run_id, spool, connect=away)
    writer.metrics({"foreign": 1.0}, 1)
    writer.close(timeout=0.1)
    store.set_tags(run_id, {"d2ls.spool": f"host:{spool}", "d2ls.run_folder": str(tmp_path / "elsewhere")})
    diagnosis.check_runs(store, recipe.output_dir)
    assert "foreign" not in store.run(run_id).metrics
    assert list(spool.glob("*.json"))


def other_tag(store: Store, run_id: str, folder: RunFolder) -> None:
    store.set_tags(run_id, {"recipe_digest": "0" * 64})


def deleted(store: Store, run_id: str, folder: RunFolder) -> None:
    store.client.delete_run(run_id)


def not_there(store: Store, run_id: str, folder: RunFolder) -> None:
    folder.update(run_id="0" * 32, store="http://other:5000")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_tag, "belongs to another training: its tag recipe_digest"),
        (deleted, "mlflow runs restore --run-id"),
        (
            not_there,
            "opened in http://other:5000: set tracking.uri.*If `mlflow gc` removed it: To log to a new",
        ),
    ],
)
def test_a_folder_whose_run_is_not_its_own_is_refused_with_the_way_out(
    change, words: str, recipe: Recipe, shards: ShardSet, store: Store
) -> None:
    folder = begin(recipe, "mismatch")
    run_id = tracked_run.open_run(store, recipe, shards.card, folder, "training")
    change(store, run_id, folder)
    with pytest.raises(TrackingError, match=words):
        tracked_run.open_run(store, recipe, shards.card, folder, "training")
    metadata = json.loads((Path(folder.uri) / "run.json").read_text())
    del metadata["run_id"]  # the way out
    (Path(folder.uri) / "run.json").write_text(json.dumps(metadata))
    assert train(recipe, shards, folder, 1) not in (run_id, "0" * 32)


def test_a_moved_folder_goes_on_and_a_copied_one_is_refused(
    recipe: Recipe, shards: ShardSet, store: Store, tmp_path: Path
) -> None:
    folder = begin(recipe, "here")
    run_id = tracked_run.open_run(store, recipe, shards.card, folder, "training")
    there = RunFolder.of(str(tmp_path / "there"), "here")
    shutil.copytree(folder.uri, there.uri)
    with pytest.raises(ConfigError, match="is a copy of"):
        tracked_run.open_run(store, recipe, shards.card, there, "training")
    shutil.rmtree(folder.uri)
    assert tracked_run.open_run(store, recipe, shards.card, there, "training") == run_id
    assert store.run(run_id).tags["d2ls.run_folder"] == there.uri


def test_a_moved_project_goes_on_through_a_link(shards: ShardSet, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    recipe = make_recipe(shards, **{"output_dir": str(old / "runs")})
    store = make_store(old)
    folder = begin(recipe, "first")
    run_id = tracked_run.open_run(store, recipe, shards.card, folder, "training")
    old.rename(new)
    recipe = recipe.with_values({"output_dir": str(new / "runs")})
    store, folder = make_store(new), RunFolder.of(str(new / "runs"), "first")
    with pytest.raises(TrackingError, match=f"`ln -s {new} {old}`"):
        tracked_run.open_run(store, recipe, shards.card, folder, "training")
    checkpoint = make_checkpoint(tmp_path / "checkpoint", shards, recipe)
    with pytest.raises(TrackingError, match=f"`ln -s {new} {old}`"):
        register_checkpoint(store, run_id, checkpoint, "d2ls-blobs", card=shards.card, recipe=recipe)
    assert not old.exists(), "nothing is written to the old place"
    old.symlink_to(new)
    assert tracked_run.open_run(store, recipe, shards.card, folder, "training") == run_id

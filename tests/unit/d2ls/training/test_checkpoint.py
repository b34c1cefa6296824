import json
import logging
from dataclasses import replace

import pytest
import torch

from d2ls import storage
from d2ls.errors import CheckpointError, StorageError
from d2ls.training import checkpoint, checkpoint_files
from d2ls.training.checkpoint_files import complete_checkpoints
from d2ls.training.evaluator import Evaluator
from tests.tiny_trainer import Recorder, assert_equal, make_trainer, tiny_shards, weights


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return tiny_shards(tmp_path_factory.mktemp("shards"))


def restored(trainer):
    state = trainer.checkpointer.restore(trainer.network, trainer.optimizer, trainer.ema)
    return state and state.step


def test_state_loads_without_pickle(shards, tmp_path):
    make_trainer(shards, tmp_path, epochs=1).run()
    folder = tmp_path / "step-00000003"
    content = torch.load(folder / "state.pt", weights_only=True)
    assert content["progress"]["step"] == 3
    assert content["identity"] == {"seed": 3, "steps": 3}
    listed = json.loads((folder / "COMPLETE").read_text())
    assert set(listed) == {path.name for path in folder.iterdir()} - {"COMPLETE"}


def two_checkpoints(shards, folder):
    """Trains without learning: both epochs score the same, so the first stays the best and both are kept."""
    trainer = make_trainer(shards, folder, epochs=2, lr=0.0)
    trainer.schedule = replace(trainer.schedule, final_lr=0.0)
    trainer.run()
    assert [result.step for result in complete_checkpoints(str(folder))] == [3, 6]


def test_incomplete_checkpoints_do_not_count_and_are_cleared(shards, tmp_path):
    two_checkpoints(shards, tmp_path)
    (tmp_path / "step-00000006" / "COMPLETE").unlink()
    (tmp_path / ".step-00000009.77.partial").mkdir()
    trainer = make_trainer(shards, tmp_path, epochs=2)
    assert restored(trainer) == 3
    assert not (tmp_path / "step-00000006").exists()
    assert not list(tmp_path.glob(".step*"))


def damage(folder):
    """Changes a bit of the weights."""
    target = folder / "model.safetensors"
    content = bytearray(target.read_bytes())
    content[-1] ^= 1
    target.write_bytes(content)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(shards, tmp_path, caplog):
    two_checkpoints(shards, tmp_path)
    damage(tmp_path / "step-00000006")
    trainer = make_trainer(shards, tmp_path, epochs=2)
    with caplog.at_level(logging.WARNING):
        assert restored(trainer) == 3
    assert "model.safetensors is not as it was written" in caplog.text
    damage(tmp_path / "step-00000003")
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        restored(trainer)


def test_a_checkpoint_of_another_run_is_refused(shards, tmp_path):
    make_trainer(shards, tmp_path, epochs=1).run()
    trainer = make_trainer(shards, tmp_path, epochs=1)
    trainer.checkpointer.identity = {"seed": 4, "steps": 3}
    with pytest.raises(CheckpointError, match="seed was 3, is 4"):
        restored(trainer)


def test_a_full_disk_stops_the_run_and_leaves_the_older_checkpoint(shards, tmp_path, monkeypatch):
    write, calls = checkpoint.write_bundle, []

    def full_on_the_second(folder, *rest):
        calls.append(folder)
        write(folder, *rest)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_bundle", full_on_the_second)
    with pytest.raises(CheckpointError, match=r"No space left.*Older checkpoints are intact.*--resume"):
        make_trainer(shards, tmp_path, epochs=3).run()
    assert [result.step for result in complete_checkpoints(str(tmp_path))] == [3]
    assert not list(tmp_path.glob(".step*"))
    whole = make_trainer(shards, None, epochs=3)
    whole.run()
    rest = make_trainer(shards, tmp_path, epochs=3)
    rest.run()
    assert_equal(weights(whole), weights(rest))


def test_an_object_store_that_fails_now_and_then_is_asked_again(shards, tmp_path, monkeypatch):
    """A file system of pyarrow stands in for the object store: everything goes through upload and download."""
    monkeypatch.setattr(storage, "is_local", lambda uri: False)
    monkeypatch.setattr(checkpoint_files.time, "sleep", lambda seconds: None)
    upload, calls = storage.upload, []

    def shaky(source, uri):
        calls.append(uri)
        if len(calls) % 3 == 1:
            raise StorageError(f"{uri}: 503 Slow Down")
        (tmp_path / uri.split("/")[-2]).mkdir(exist_ok=True)  # object stores have no folders
        upload(source, uri)

    monkeypatch.setattr(storage, "upload", shaky)
    root = tmp_path.as_uri()
    recorder = Recorder()
    whole = make_trainer(shards, root, epochs=2, callbacks=[recorder])
    whole.run()
    assert recorder.checkpoints[-1] == ("step-00000006", True)
    assert len(calls) > 8
    rest = make_trainer(shards, root, epochs=2)
    assert restored(rest) == 6
    assert_equal(weights(whole), weights(rest))


def test_an_object_store_that_does_not_answer_raises_an_error_that_is_tried_again(
    shards, tmp_path, monkeypatch
):
    def down(source, uri):
        raise StorageError(f"{uri}: no route to host")

    monkeypatch.setattr(storage, "is_local", lambda uri: False)
    monkeypatch.setattr(checkpoint_files.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(storage, "upload", down)
    with pytest.raises(StorageError, match=r"no route to host.*Older checkpoints are intact"):
        make_trainer(shards, tmp_path.as_uri(), epochs=1).run()


def test_an_object_store_that_does_not_answer_is_not_taken_for_damage(shards, tmp_path, monkeypatch):
    two_checkpoints(shards, tmp_path)
    monkeypatch.setattr(storage, "is_local", lambda uri: False)
    monkeypatch.setattr(checkpoint_files.time, "sleep", lambda seconds: None)
    read = storage.read_bytes

    def down(uri):
        if uri.endswith("step-00000006/state.pt"):
            raise StorageError(f"{uri}: 503 Slow Down")
        return read(uri)

    trainer = make_trainer(shards, tmp_path.as_uri(), epochs=2)
    with monkeypatch.context() as patched:
        patched.setattr(storage, "read_bytes", down)
        with pytest.raises(StorageError, match="503"):
            restored(trainer)
    assert restored(trainer) == 6
    (tmp_path / "step-00000006" / "state.pt").unlink()
    assert restored(trainer) == 3


def test_in_an_object_store_a_step_that_is_written_again_is_incomplete_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "is_local", lambda uri: False)
    target, folder = tmp_path / "step-00000003", tmp_path / "new"
    for made in (target, folder):
        made.mkdir()
        (made / "model.safetensors").write_text(made.name)
    (target / "COMPLETE").write_text("{}")

    def killed(source, uri):
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "upload", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint_files.publish(folder, target.as_uri())
    assert complete_checkpoints(tmp_path.as_uri()) == []


@pytest.mark.parametrize("epochs", [2, 3], ids=["at the last epoch", "before an epoch"])
def test_a_kill_before_the_best_is_noted_loses_no_best(shards, tmp_path, monkeypatch, epochs):
    """The second epoch is the best. Its checkpoint is complete, and `best.json` still names the first one."""
    scores = iter([0.1, 0.5, 0.2])
    evaluate = Evaluator.__call__

    def scored(self, network):
        confusion, result = evaluate(self, network)
        return confusion, replace(result, miou=next(scores))

    monkeypatch.setattr(Evaluator, "__call__", scored)
    write, calls = checkpoint_files.write_best, []

    def killed_at_the_second(root, pointer):
        calls.append(pointer)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(root, pointer)

    monkeypatch.setattr(checkpoint_files, "write_best", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        make_trainer(shards, tmp_path, epochs=epochs).run()
    rest = make_trainer(shards, tmp_path, epochs=epochs)
    rest.run()
    best = json.loads((tmp_path / "best.json").read_text())
    assert (best["checkpoint"], best["score"]) == ("step-00000006", 0.5)
    assert best["scores"] == rest.state.best_scores
    assert (tmp_path / best["checkpoint"] / "COMPLETE").exists()


def test_an_older_checkpoint_that_cannot_be_deleted_ends_no_training(shards, tmp_path, monkeypatch, caplog):
    def refuses(uri):
        raise StorageError(f"{uri}: 403 no permission to delete")

    monkeypatch.setattr(storage, "delete", refuses)
    with caplog.at_level(logging.WARNING):
        make_trainer(shards, tmp_path, epochs=3, lr=0.0).run()
    assert "no permission to delete" in caplog.text
    assert [result.step for result in complete_checkpoints(str(tmp_path))] == [3, 6, 9]


def test_checkpointing_does_not_change_the_run(shards, tmp_path):
    first, second = make_trainer(shards, tmp_path, checkpoint_every_steps=1), make_trainer(shards, None)
    first.run()
    second.run()
    assert_equal(weights(first), weights(second))

"""An event on a single rank ends or changes the run on every rank. One group of two gloo processes runs all cases."""

import math
from pathlib import Path

import pytest
import torch

from d2ls import storage
from d2ls.errors import D2LSError, StorageError
from d2ls.training import checkpoint_files
from tests.fake_device import FakeDevice
from tests.tiny_trainer import Recorder, make_trainer, tiny_shards, weights


def refused(action):
    """Returns the error of an action as text."""
    try:
        action()
    except D2LSError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def restore(shards, folder):
    trainer = make_trainer(shards, folder, epochs=1, global_batch_size=4)
    return trainer.checkpointer.restore(trainer.network, trainer.optimizer)


def full_disk(shards, folder, rank):
    """Rank 1 has no room for a checkpoint from an object store."""

    def download(uri, target):
        if rank == 1:
            raise OSError(28, "No space left on device")
        target.write_bytes(storage.read_bytes(uri))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "is_local", lambda uri: False)
        patch.setattr(checkpoint_files, "_download", download)
        return refused(lambda: restore(shards, Path(folder).as_uri()))


def unreachable(shards, folder, rank):
    """Only rank 0 reads the store, and fails."""

    def listed(root):
        raise StorageError(f"{root}: cannot be reached")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_files, "complete_checkpoints", listed)
        return refused(lambda: restore(shards, folder))


def not_finite(shards, rank, device, skips):
    """Only rank 1 has a value that is not finite in the second step; its gradients are finite."""
    recorder = Recorder()
    trainer = make_trainer(
        shards,
        epochs=1,
        callbacks=[recorder],
        device=device,
        skip_non_finite=skips,
        backbone="test_resnet",
        ema=0.9,
    )
    gradients, calls = trainer.loss.forward, []

    def forward(*arguments):
        result = gradients(*arguments)
        calls.append(result)
        spoiled = rank == 1 and len(calls) == 2
        return (
            result._replace(terms={**result.terms, "dice": result.terms["dice"] * math.nan})
            if spoiled
            else result
        )

    trainer.loss.forward = forward
    error = refused(trainer.run)
    total = float(sum(value.double().abs().sum() for value in weights(trainer).values()))
    return error, tuple(report.step for report in recorder.steps), trainer.state.skipped, total


def filled(shards, rank):
    """Returns batch norm statistics after a step of 3 samples in micro-steps of one per rank, and the expected ones.

    Rank 1 has no second sample and adds one that does not count.
    """
    trainer = make_trainer(
        shards, epochs=1, global_batch_size=3, micro_batch_size=1, backbone="test_resnet", lr=0.0
    )
    plain = make_trainer(
        shards, epochs=1, global_batch_size=3, backbone="test_resnet", group=type(trainer.group)()
    )
    made = trainer.batches
    trainer.batches = lambda epoch, start: list(made(epoch, start))[:1]
    trainer.schedule = type(trainer.schedule)(lr=0.0, steps_per_epoch=1, total_steps=1)
    trainer.run()
    batch = next(iter(plain.batches(0, 0)))
    network = plain.network.train()
    with torch.no_grad():
        for part in ([0, 2], [1]):
            network(batch.images[part])
    pairs = zip(trainer.network.named_buffers(), network.named_buffers(), strict=True)
    return max(float((ours - theirs).abs().max()) for (_, ours), (_, theirs) in pairs)


def small(shards, rank):
    """Only rank 1 has little memory."""
    device = FakeDevice()
    trainer = make_trainer(shards, epochs=1, global_batch_size=4, device=device, sample_shape=(3, 64, 64))
    device.small_memory(trainer.network, 1 if rank else 9)
    trainer.run()
    return trainer._gradients.plan.parts


def broken(shards, rank):
    """Only rank 1 fails in the memory probe, with an internal error."""
    trainer = make_trainer(shards, epochs=1, device=FakeDevice(), sample_shape=(3, 64, 64))
    if rank == 1:
        trainer.network.aggregator.forward = None
    try:
        trainer.run()
    except (TypeError, D2LSError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def everything(shards, good, damaged):
    torch.set_num_threads(1)
    rank = torch.distributed.get_rank()
    return {
        "damaged": refused(lambda: restore(shards, damaged)),
        "full": full_disk(shards, good, rank),
        "unreachable": unreachable(shards, good, rank),
        "stopped": not_finite(shards, rank, None, 0),
        "skipped": not_finite(shards, rank, None, 1),
        "skipped late": not_finite(shards, rank, FakeDevice(), 1),
        "filled": filled(shards, rank),
        "small": small(shards, rank),
        "broken": broken(shards, rank),
    }


@pytest.fixture(scope="module")
def result(tmp_path_factory, ranks):
    shards = tiny_shards(tmp_path_factory.mktemp("shards"))
    good, damaged = tmp_path_factory.mktemp("good"), tmp_path_factory.mktemp("damaged")
    for folder in (good, damaged):
        make_trainer(shards, folder, epochs=1).run()
    (damaged / "step-00000003" / "model.safetensors").write_bytes(b"")
    return ranks.run(2, everything, shards, str(good), str(damaged), timeout=120)


def test_all_checkpoints_are_damaged(result):
    for rank in result:
        assert rank["damaged"].startswith("CheckpointError")
        assert "every checkpoint is damaged" in rank["damaged"]


def test_a_full_disk_of_one_rank_ends_all(result):
    for rank in result:
        assert rank["full"].startswith("CheckpointError")
        assert "No space left on device" in rank["full"]
        assert "TMPDIR" in rank["full"]
    assert "rank 1: " in result[0]["full"]


def test_a_store_that_rank_0_cannot_reach_ends_all(result):
    assert [rank["unreachable"].split(":")[0] for rank in result] == ["StorageError", "StorageError"]
    assert "rank 0: " in result[1]["unreachable"]


def test_a_value_that_is_not_finite_on_one_rank_changes_none(result):
    for rank in result:
        error, steps, skipped, _ = rank["stopped"]
        assert error.startswith("NonFiniteLossError: step 2:")
        assert error.count("train_0") == 4, "samples of both ranks"
        assert "dice nan" in error
        assert (steps, skipped) == ((1,), 1)
        assert rank["skipped"][:3] == ("", (1, 3), 1)
    assert len({rank[kind] for rank in result for kind in ("skipped", "skipped late")}) == 1
    assert result[0]["stopped"] == result[1]["stopped"]


def test_a_sample_that_fills_up_does_not_count(result):
    assert max(rank["filled"] for rank in result) < 1e-5


def test_the_smallest_memory_decides(result):
    assert [rank["small"] for rank in result] == [((1, 1), (1, 1))] * 2


def test_an_error_of_one_rank_ends_all_before_the_first_step(result):
    assert result[1]["broken"].startswith("TypeError")
    assert result[0]["broken"].startswith("TrainingError: rank 1: TypeError")

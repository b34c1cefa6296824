"""Two processes: over NCCL with two GPUs, else both on one GPU over gloo."""

import pytest
import torch
import torch.distributed as dist

from d2ls.training.process_group import ProcessGroup
from tests.rank_pool import RankPool
from tests.tiny_trainer import Recorder, make_trainer, weights


def first_step(shards, global_batch_size, micro_batch_size):
    """Returns the terms of the first step, and a number that identifies weights and statistics."""
    torch.set_num_threads(1)
    place = torch.device("cuda", dist.get_rank() % torch.cuda.device_count())
    torch.cuda.set_device(place)
    recorder = Recorder()
    trainer = make_trainer(
        shards, group=ProcessGroup.current(place), epochs=1, global_batch_size=global_batch_size,
        micro_batch_size=micro_batch_size, backbone="test_resnet", callbacks=[recorder], ema=0.9,
        sample_shape=(3, 64, 64),
    )  # fmt: skip
    trainer.run()
    total = float(sum(value.double().abs().sum() for value in weights(trainer).values()))
    return (
        {**recorder.steps[0].terms, "norm": recorder.steps[0].gradient_norm},
        recorder.evaluations[-1].confusion.tolist(),
        total,
    )


@pytest.mark.gpu  # on CPUs: tests/distributed
@pytest.mark.parametrize("micro_batch_size", [None, 1])
def test_two_processes_compute_one_step(shards, micro_batch_size):
    """5 samples, 3 and 2: with a micro-batch of 1 the second process adds one that does not count."""
    device = torch.device("cuda", 0)
    recorder = Recorder()
    make_trainer(
        shards,
        group=ProcessGroup.current(device),
        epochs=1,
        global_batch_size=5,
        backbone="test_resnet",
        callbacks=[recorder],
    ).run()
    backend = "nccl" if torch.cuda.device_count() > 1 else "gloo"
    with RankPool() as ranks:
        result = ranks.run(2, first_step, shards, 5, micro_batch_size, backend=backend)
    assert result[0] == result[1], "ranks disagree"
    if micro_batch_size is None:
        expected = {**recorder.steps[0].terms, "norm": recorder.steps[0].gradient_norm}
        assert result[0][0] == pytest.approx(expected, rel=1e-3)

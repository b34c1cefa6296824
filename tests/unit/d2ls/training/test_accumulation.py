import pytest

from d2ls.data import rank_lanes
from d2ls.training.accumulation import MicrobatchPlan


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("micro_batch_size", [None, 1, 2, 3])
def test_every_sample_is_in_one_micro_step(world_size, micro_batch_size):
    micro = MicrobatchPlan.create(7, world_size, micro_batch_size)
    shares = [len(rank_lanes(7, rank, world_size)) for rank in range(world_size)]
    assert [micro.share(rank) for rank in range(world_size)] == shares, "as the loader deals them"
    assert sum(micro.sizes) == 7
    assert sum(micro.weights) == pytest.approx(1)
    assert {len(rank) for rank in micro.parts} == {micro.steps}, "the same number on every rank"
    assert max(map(max, micro.parts)) <= (micro_batch_size or 7)


def test_what_accumulation_does_is_said():
    assert MicrobatchPlan.create(8, 2, None).describe() == ""
    text = MicrobatchPlan.create(8, 2, 2).describe()
    assert "8 samples per step are accumulated in 2 micro-steps of 4 samples over all workers" in text
    assert "Dice and the contrastive term" in text
    assert "contrastive ratio is zero" in MicrobatchPlan.create(3, 1, 1).describe()
    assert "does not count" in MicrobatchPlan.create(3, 2, 1).describe()

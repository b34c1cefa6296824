import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2ls.data.sampler import epoch_plan, rank_lanes, steps_per_epoch, subset
from d2ls.data.weighting import multiplicities, repeat_factors
from d2ls.errors import ConfigError

shard_sizes = st.lists(st.integers(1, 40), min_size=1, max_size=12)
plans = st.fixed_dictionaries(
    {
        "sizes": shard_sizes,
        "global_batch_size": st.integers(1, 24),
        "seed": st.integers(0, 2**40),
        "epoch": st.integers(0, 1000),
        "window": st.integers(1, 300),
    }
)


def codes(sizes):
    return np.repeat(np.arange(len(sizes)), sizes)


def make(case, **changes):
    case = {**case, **changes}
    return epoch_plan(case.pop("sizes"), **case)


def batches(plan, world_size=1, start_step=0):
    """Global batches as a table T x G, put together from the ranks."""
    parts = [
        plan.schedule(rank_lanes(plan.global_batch_size, r, world_size), start_step)
        for r in range(world_size)
    ]
    return np.concatenate([part.rows for part in parts], axis=1)


@given(plans)
def test_every_sample_stands_once_and_the_wrap_around_is_counted(case):
    plan = make(case)
    samples = sum(case["sizes"])
    result = np.bincount(batches(plan).ravel(), minlength=samples)
    assert result.min() >= 1
    assert result.sum() - samples == plan.wrapped < case["global_batch_size"]
    assert plan.steps == steps_per_epoch(samples, case["global_batch_size"]) == len(batches(plan))
    repeated = batches(plan)[-1]
    assert np.array_equal(
        np.bincount(batches(plan)[:-1].ravel(), minlength=samples) > 1, np.zeros(samples, bool)
    )
    assert len(repeated) == case["global_batch_size"]


@given(plans, st.integers(1, 24), st.data())
def test_global_batches_do_not_depend_on_ranks_or_on_where_a_run_starts(case, world_size, data):
    world_size = min(world_size, case["global_batch_size"])
    plan = make(case)
    start = data.draw(st.integers(0, plan.steps))
    assert np.array_equal(batches(plan)[start:], batches(make(case), world_size, start))


@given(plans)
def test_slots_of_one_epoch_have_streams_of_their_own(case):
    schedule = make(case).schedule(range(case["global_batch_size"]))
    pairs = list(zip(schedule.rows.ravel().tolist(), schedule.occurrences.ravel().tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)


@given(plans)
def test_a_lane_stays_in_its_range_and_its_window(case):
    plan = make(case)
    place = {int(row): position for position, row in enumerate(plan.sequence.rows(range(len(plan.sequence))))}
    for lane in range(plan.global_batch_size):
        start, stop = plan.lane_bounds(lane)
        walk = plan.lane(lane)
        positions = np.array([place[int(row)] for row in walk.rows])
        assert (walk.high - walk.low <= plan.window).all()
        assert (walk.low >= start).all()
        assert (walk.high <= max(stop, start + 1)).all()
        assert (walk.high > walk.low).all()
        regular = slice(0, stop - start)
        assert ((walk.low <= positions) & (positions < walk.high))[regular].all()
        assert (abs(positions[regular] - np.arange(start, stop)) < plan.window).all()


@given(shard_sizes, st.integers(1, 24), st.integers(1, 24))
def test_ranks_share_the_shards(sizes, global_batch_size, world_size):
    world_size = min(world_size, global_batch_size)
    plan = epoch_plan(sizes, global_batch_size=global_batch_size, seed=1, epoch=0)
    lanes = [rank_lanes(global_batch_size, rank, world_size) for rank in range(world_size)]
    assert [lane for part in lanes for lane in part] == list(range(global_batch_size))
    assert max(map(len, lanes)) - min(map(len, lanes)) <= 1
    touched = [len(np.unique(codes(sizes)[plan.schedule(part).rows])) for part in lanes]
    assert sum(touched) <= len(sizes) + world_size - 1 + plan.wrapped


@given(plans)
def test_window_one_keeps_the_order_of_the_shards(case):
    plan = make(case, window=1)
    start, stop = plan.lane_bounds(0)
    assert np.array_equal(plan.lane(0).rows[: stop - start], plan.sequence.rows(range(start, stop)))


@given(shard_sizes, st.integers(1, 24), st.integers(0, 99), st.floats(0, 1))
def test_multiplicities_keep_the_number_of_steps_and_every_sample(sizes, global_batch_size, seed, strength):
    pixels = np.random.default_rng(seed).integers(0, 100, (sum(sizes), 5))
    factors = repeat_factors(pixels, strength)
    counts = [multiplicities(factors, seed=seed, epoch=epoch) for epoch in range(4)]
    assert len({int(count.sum()) for count in counts}) == 1
    for epoch, count in enumerate(counts):
        assert count.min() >= 1
        assert (abs(count - factors * count.sum() / factors.sum()) <= 1 + 1e-6).all()
        plan = epoch_plan(
            sizes,
            global_batch_size=global_batch_size,
            seed=seed,
            epoch=epoch,
            multiplicities=count,
            window=16,
        )
        result = np.bincount(batches(plan).ravel(), minlength=len(count))
        assert (result >= count).all()
        assert (result - count).sum() == plan.wrapped
        schedule = plan.schedule(range(global_batch_size))
        assert (
            len(set(zip(schedule.rows.ravel(), schedule.occurrences.ravel(), strict=True)))
            == schedule.rows.size
        )


def test_epochs_and_seeds_differ_and_shards_move_between_lanes():
    case = {"sizes": [10] * 20, "global_batch_size": 4, "seed": 3, "epoch": 0, "window": 32}
    first = batches(make(case))
    assert np.array_equal(first, batches(make(case)))
    for change in ({"epoch": 1}, {"seed": 4}):
        other = batches(make(case, **change))
        assert (other != first).mean() > 0.9
        assert set(other[:, 0] // 10) != set(first[:, 0] // 10)


def test_rare_classes_come_more_often_as_strength_grows():
    pixels = np.array([[90, 10], [100, 0], [100, 0], [100, 0]])
    factors = [repeat_factors(pixels, strength)[0] for strength in (0, 0.5, 1)]
    assert factors[0] == 1 < factors[1] < factors[2] == 8  # 20 times rarer, held at the limit
    assert (repeat_factors(pixels, 1)[1:] == 1).all()
    mean = np.mean([multiplicities(np.array([1.5, 1.0, 1.25]), seed=0, epoch=e) for e in range(2000)], axis=0)
    assert mean == pytest.approx(np.array([1.5, 1.0, 1.25]) * 4 / 3.75, abs=0.05)


@given(shard_sizes, st.integers(1, 24), st.integers(0, 99), st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_part_of_a_split_is_nested_and_its_epochs_are_exact(sizes, global_batch_size, seed, one, other):
    samples = sum(sizes)
    small, large = (subset(samples, fraction, seed) for fraction in sorted((one, other)))
    assert set(small) <= set(large)
    assert len(small) == max(1, round(min(one, other) * samples))
    counts = np.zeros(samples, int)
    counts[small] = 1
    plan = epoch_plan(
        sizes, global_batch_size=global_batch_size, seed=seed, epoch=2, multiplicities=counts, window=16
    )
    result = np.bincount(batches(plan).ravel(), minlength=samples)
    assert (result > 0).tolist() == (counts > 0).tolist()
    assert result.sum() - len(small) == plan.wrapped
    ranks, start = min(3, global_batch_size), plan.steps // 2
    assert np.array_equal(batches(plan)[start:], batches(plan, ranks, start))
    walk = plan.schedule(range(global_batch_size))
    partners = plan.sequence.rows(np.stack([walk.low, walk.high - 1]))
    assert set(partners.ravel()) <= set(small), "mosaics take no other samples"


def test_seeds_draw_other_parts_and_an_impossible_one_is_refused():
    assert subset(100, 0.2, 1).tolist() != subset(100, 0.2, 2).tolist()
    assert subset(100, 1.0, 1).tolist() == list(range(100))
    assert subset(20, 0.25, 7).tolist() == [3, 4, 5, 18, 19], "a change here changes what a seed means"
    for wrong in (0.0, -0.5, 1.5):
        with pytest.raises(ConfigError, match="at most 1"):
            subset(100, wrong, 1)


def test_an_unlabelled_class_or_split_repeats_nothing():
    assert (repeat_factors(np.zeros((3, 2), int), 1.0) == 1).all()
    assert (repeat_factors(np.array([[5, 0], [5, 0]]), 1.0) == 1).all()


def test_impossible_plans_are_refused():
    for wrong in ({"global_batch_size": 0}, {"window": 0}, {"seed": -1}, {"epoch": -1}):
        with pytest.raises(ConfigError):
            epoch_plan([3], **{"global_batch_size": 2, "seed": 0, "epoch": 0, **wrong})
    with pytest.raises(ConfigError, match="no samples"):
        epoch_plan([], global_batch_size=2, seed=0, epoch=0)
    with pytest.raises(ConfigError, match="9 ranks cannot share a global batch of 8"):
        rank_lanes(8, 0, 9)
    with pytest.raises(ConfigError, match="rank 2"):
        rank_lanes(8, 2, 2)
    with pytest.raises(ConfigError, match="start step 3"):
        epoch_plan([3], global_batch_size=2, seed=0, epoch=0).schedule([0], 3)
    with pytest.raises(ConfigError, match="strength"):
        repeat_factors(np.ones((2, 2), int), 1.5)
    with pytest.raises(ConfigError, match="maximum"):
        repeat_factors(np.ones((2, 2), int), 1, maximum=0.5)


def test_three_ranks_of_eight_lanes():
    assert [list(rank_lanes(8, rank, 3)) for rank in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_the_order_of_an_epoch_is_pinned():
    """A change here changes what every seed means: it needs an entry in the change log."""
    plan = epoch_plan([3, 2, 4], global_batch_size=2, seed=7, epoch=1, window=4)
    assert batches(plan).tolist() == [[5, 7], [3, 8], [6, 2], [4, 0], [5, 1]]


def test_a_rank_of_many_pays_for_its_own_lanes_alone():
    tracemalloc.start()
    plan = epoch_plan([500] * 20_000, global_batch_size=4096, seed=0, epoch=3)  # ten million samples
    schedule = plan.schedule(rank_lanes(4096, 100, 512))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert schedule.rows.shape == (plan.steps, 8)
    assert peak < 8_000_000  # a number for each sample of the epoch would take ten times that


def test_the_plan_needs_no_torch():
    code = "import sys, d2ls.data.sampler, d2ls.data.weighting; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

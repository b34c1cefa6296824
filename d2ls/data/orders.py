"""Work orders: what a worker gets to make one batch. Plain values, so workers need neither index nor plan."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from d2ls.data.sampler import EpochPlan, IntArray, SampleSeed
from d2ls.errors import ConfigError
from d2ls.shards.index import IndexRow, SplitIndex

Box = tuple[int, int, int, int]
"""Top, left, height, width in pixels."""


class SampleSpec(NamedTuple):
    """One sample to make.

    Attributes:
        record: where it lies.
        seed: what its random choices depend on (training only).
        partners: three further samples where it becomes a mosaic, else none.
        box: window of the sample to take (evaluation only); None for all of it.
        valid: False for a place that only fills the last evaluation batch.
    """

    record: IndexRow
    seed: SampleSeed | None = None
    partners: tuple[IndexRow, ...] = ()
    box: Box | None = None
    valid: bool = True


class BatchSpec(NamedTuple):
    """One batch of a rank.

    Attributes:
        step: number of the global batch in the epoch.
        samples: its samples, in order.
    """

    step: int
    samples: tuple[SampleSpec, ...]


def training_specs(
    plan: EpochPlan, records: SplitIndex, lanes: range, *, start_step: int = 0, mosaic: float = 0.0
) -> Iterator[BatchSpec]:
    """Yields a rank's part of each global batch, from a step on.

    Args:
        plan: plan of the epoch.
        records: the samples.
        lanes: lanes of the rank.
        start_step: first step to take.
        mosaic: probability that a sample becomes a mosaic with three others of its lane's shuffle window.
    """
    schedule = plan.schedule(lanes, start_step)
    columns = (schedule.rows, schedule.occurrences, schedule.low, schedule.high)
    for index in range(len(schedule.rows)):
        samples = []
        for row, occurrence, low, high in zip(*(column[index].tolist() for column in columns), strict=True):
            seed = SampleSeed(plan.seed, plan.epoch, row, occurrence)
            partners = _mosaic_partners(plan, seed, low, high, mosaic)
            samples.append(SampleSpec(records[row], seed, tuple(records[partner] for partner in partners)))
        yield BatchSpec(start_step + index, tuple(samples))


def _mosaic_partners(plan: EpochPlan, seed: SampleSeed, low: int, high: int, probability: float) -> list[int]:
    if probability <= 0:
        return []
    generator = seed.partner_generator()
    if generator.random() >= probability:
        return []
    picked: list[int] = plan.sequence.rows(generator.integers(low, high, 3)).tolist()
    return picked


def evaluation_batches(
    sizes: IntArray, batch_size: int, window: int | None = None
) -> list[list[tuple[int, Box | None]]]:
    """Cuts a split into batches of one shape each: (row, box) of each place, the last batch of a shape may be short.

    Args:
        sizes: N x 2, height and width.
        batch_size: places of a batch.
        window: side of the square windows that samples are cut into, edge to edge; None takes samples whole.

    Raises:
        ConfigError: a batch size or window below 1.
    """
    if batch_size < 1 or (window is not None and window < 1):
        raise ConfigError(f"batch size and window need at least 1, got {batch_size} and {window}")
    places: list[tuple[int, Box | None]]
    if window is not None:
        places = [
            (row, box)
            for row, (height, width) in enumerate(sizes.tolist())
            for box in _grid(height, width, window)
        ]
        return _chunks(places, batch_size)
    batches = []
    shapes, members = np.unique(sizes, axis=0, return_inverse=True)
    for shape in range(len(shapes)):
        rows = np.flatnonzero(members.ravel() == shape).tolist()
        batches += _chunks([(row, None) for row in rows], batch_size)
    return batches


def rank_batches(batches: int, rank: int, world_size: int) -> range:
    """Returns the contiguous run of evaluation batches that a rank takes whole; it may be empty.

    Raises:
        ConfigError: a rank outside 0..world_size-1.
    """
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank {rank} is outside 0..{world_size - 1}")
    return range(rank * batches // world_size, (rank + 1) * batches // world_size)


def evaluation_spec(
    step: int, places: list[tuple[int, Box | None]], records: SplitIndex, batch_size: int
) -> BatchSpec:
    """Makes the order of one evaluation batch, filled up with places that are not scored."""
    samples = [SampleSpec(records[row], box=box) for row, box in places]
    filling = [samples[-1]._replace(valid=False)] * (batch_size - len(samples))
    return BatchSpec(step, (*samples, *filling))


def _grid(height: int, width: int, window: int) -> list[Box]:
    return [
        (top, left, min(window, height - top), min(window, width - left))
        for top in range(0, height, window)
        for left in range(0, width, window)
    ]


def _chunks(places: list[tuple[int, Box | None]], size: int) -> list[list[tuple[int, Box | None]]]:
    return [places[start : start + size] for start in range(0, len(places), size)]

"""The epoch as a pure function: which sample stands in which slot of which global batch. Arithmetic, without torch.

    samples of a split -> shards in a random order of (seed, epoch) -> one sequence of M positions
    -> cut into G lanes (one per slot of the global batch) -> each lane shuffled within a window
    -> step t of lane g is slot g of global batch t

Only `rank_lanes` knows ranks: a rank takes some of the lanes, a worker some of the steps. So the sequence of global
    batches depends only on the index and (seed, epoch, global batch size). A run can stop at any step and continue
    with another number of ranks and workers. docs/architecture.md derives the plan.

`training_specs` turns the plan into `BatchSpec`s: all that a worker needs to make a batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from d2ls.errors import ConfigError
from d2ls.shards import IndexRow, SplitIndex
from d2ls.window import Window

IntArray = npt.NDArray[np.int64]

DEFAULT_WINDOW = 256
"""Samples that a lane shuffles over."""

_SHARDS, _WALK, _ROUNDING, _PARTNERS, _AUGMENT, _SUBSET = range(
    6
)  # purposes of random numbers, a stream for each
_KEY_BITS = 20  # resolution of the random delay in a shuffle window


def steps_per_epoch(samples: int, global_batch_size: int) -> int:
    """Returns the number of global batches that hold every sample once: the last one wraps around.

    Args:
        samples: slots to fill, at least 1 (the samples, counted with their multiplicities).
        global_batch_size: G, samples per step over all ranks.

    Raises:
        ConfigError: no samples, or a batch size below 1.
    """
    if global_batch_size < 1:
        raise ConfigError(f"the global batch needs at least 1 sample, got {global_batch_size}")
    if samples < 1:
        raise ConfigError("the split holds no samples: there is nothing to make an epoch of")
    return -(-samples // global_batch_size)


def subset(samples: int, fraction: float, seed: int) -> IntArray:
    """Returns the rows of a random part of a split; a larger fraction contains the smaller ones of the same seed.

    Args:
        samples: N, rows of the split.
        fraction: share of them, in (0, 1]; at least one row is taken.
        seed: seed of the run.

    Returns:
        Numbers of the rows, ascending.

    Raises:
        ConfigError: an impossible fraction.
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"the fraction of a split lies above 0 and is at most 1, got {fraction}")
    order = np.random.default_rng((_SUBSET, seed)).permutation(samples)
    return np.sort(order[: max(1, round(fraction * samples))])


def rank_lanes(global_batch_size: int, rank: int, world_size: int) -> range:
    """Returns the contiguous lanes of a rank; the first ranks have one more where the split is uneven.

    Raises:
        ConfigError: more ranks than lanes, or a rank outside 0..world_size-1.
    """
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank {rank} is outside 0..{world_size - 1}")
    if world_size > global_batch_size:
        raise ConfigError(
            f"{world_size} ranks cannot share a global batch of {global_batch_size}: each rank needs a sample a step. "
            f"Use at most {global_batch_size} ranks, or a larger global batch"
        )
    share, extra = divmod(global_batch_size, world_size)
    first = rank * share + min(rank, extra)
    return range(first, first + share + (rank < extra))


class SampleSeed(NamedTuple):
    """Identifies one occurrence of one sample in a run; its random choices depend on this alone.

    Attributes:
        seed: seed of the run.
        epoch: epoch, from 0.
        row: number of the sample's row in its split.
        occurrence: occurrence index within the epoch, 0 for the first.
    """

    seed: int
    epoch: int
    row: int
    occurrence: int

    def partner_generator(self) -> np.random.Generator:
        """Returns the random stream that decides whether it becomes a mosaic, and of which samples."""
        return np.random.default_rng((_PARTNERS, *self))

    def augment_generator(self) -> np.random.Generator:
        """Returns the random stream of its augmentation."""
        return np.random.default_rng((_AUGMENT, *self))


def rounding_generator(seed: int, epoch: int) -> np.random.Generator:
    """Returns the stream that rounds repeat factors to whole numbers."""
    return np.random.default_rng((_ROUNDING, seed, epoch))


@dataclass(frozen=True)
class SampleSchedule:
    """The samples of some lanes in consecutive steps; all arrays T x L, int64.

    Attributes:
        rows: number of the sample's row in the split.
        occurrences: occurrence index of the sample within the epoch; larger for the wrap-around.
        low: first position of the lane's shuffle window at that step.
        high: one past the last position of that window.
    """

    rows: IntArray
    occurrences: IntArray
    low: IntArray
    high: IntArray


@dataclass(frozen=True)
class ShardSequence:
    """The rows of a split with their shards in a random order: M positions, looked up on demand.

    Nothing of length M is stored, so a rank pays for its own lanes only and not for the whole epoch.

    Attributes:
        starts: S, first row of each shard, in the random order.
        ends: S, one past the last position of each shard.
        copies: N + 1, cumulative sum of the multiplicities, from 0; None if each row occurs once.
    """

    starts: IntArray
    ends: IntArray
    copies: IntArray | None = None

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def rows(self, positions: npt.ArrayLike) -> IntArray:
        """Returns the rows at some positions, an array of the same shape."""
        return self.find(positions)[0]

    def find(self, positions: npt.ArrayLike) -> tuple[IntArray, IntArray]:
        """Returns the rows at some positions, and which of its copies each one is, from 0."""
        positions = np.asarray(positions, dtype=np.int64)
        shard = np.searchsorted(self.ends, positions, side="right")
        begins = np.where(shard > 0, self.ends[shard - 1], 0)
        inside = positions - begins
        if self.copies is None:
            return self.starts[shard] + inside, np.zeros_like(positions)
        copy = self.copies[self.starts[shard]] + inside  # counted over the split in the order of the index
        rows = np.searchsorted(self.copies, copy, side="right") - 1
        return rows, copy - self.copies[rows]

    def multiplicity(self, row: int) -> int:
        """Returns how often a row occurs in the sequence."""
        return 1 if self.copies is None else int(self.copies[row + 1] - self.copies[row])


@dataclass(frozen=True)
class EpochPlan:
    """The plan of one epoch.

    Attributes:
        sequence: the rows in the order of the shuffled shards, each as often as its multiplicity.
        global_batch_size: G, slots of a step.
        seed: seed of the run.
        epoch: epoch, from 0.
        window: W, samples that a lane shuffles over; 1 keeps the order of the shards.
    """

    sequence: ShardSequence
    global_batch_size: int
    seed: int
    epoch: int
    window: int = DEFAULT_WINDOW
    _lanes: dict[int, SampleSchedule] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        steps_per_epoch(len(self.sequence), self.global_batch_size)
        if self.window < 1:
            raise ConfigError(f"the shuffle window needs at least 1 sample, got {self.window}")

    @property
    def steps(self) -> int:
        """Global batches of the epoch, the same for every rank."""
        return steps_per_epoch(len(self.sequence), self.global_batch_size)

    @property
    def wrapped(self) -> int:
        """Samples that the last global batch repeats to be full, fewer than G."""
        return self.steps * self.global_batch_size - len(self.sequence)

    def lane_bounds(self, lane: int) -> tuple[int, int]:
        """Returns the range of positions of a lane; lengths differ by at most one."""
        samples = len(self.sequence)
        return lane * samples // self.global_batch_size, (lane + 1) * samples // self.global_batch_size

    def lane(self, lane: int) -> SampleSchedule:
        """Returns the schedule of one lane, arrays of length `steps`."""
        if lane not in self._lanes:
            self._lanes[lane] = self._walk(lane)
        return self._lanes[lane]

    def schedule(self, lanes: Sequence[int], start_step: int = 0) -> SampleSchedule:
        """Returns the schedule of some lanes from a step on, arrays (steps - start_step) x L.

        Raises:
            ConfigError: the start lies outside the epoch.
        """
        if not 0 <= start_step <= self.steps:
            raise ConfigError(f"start step {start_step} is outside the epoch's 0..{self.steps}")
        columns = [self.lane(lane) for lane in lanes]
        parts = (
            np.stack([getattr(column, name)[start_step:] for column in columns], axis=1)
            for name in ("rows", "occurrences", "low", "high")
        )
        return SampleSchedule(*parts)

    def _walk(self, lane: int) -> SampleSchedule:
        start, stop = self.lane_bounds(lane)
        positions, reach = _window_walk(stop - start, self.window, (_WALK, self.seed, self.epoch, lane))
        positions, low, high = positions + start, reach - self.window + 1 + start, reach + 1 + start
        rows, occurrences = self.sequence.find(positions)
        low, high = np.clip(low, start, stop), np.clip(high, start, stop)
        if len(rows) == self.steps:
            return SampleSchedule(rows, occurrences, low, high)
        # The lane is one sample short of `steps`: its first sample fills the last step.
        again = rows[:1] if len(rows) else self.sequence.rows([start])
        occurrence = (
            self.sequence.multiplicity(int(again[0])) + lane
        )  # a random stream that no other slot has
        stop = max(stop, start + 1)
        return SampleSchedule(
            np.append(rows, again),
            np.append(occurrences, occurrence),
            np.append(low, max(start, stop - self.window)),
            np.append(high, stop),
        )


def epoch_plan(
    shard_lengths: npt.ArrayLike,
    *,
    global_batch_size: int,
    seed: int,
    epoch: int,
    window: int = DEFAULT_WINDOW,
    multiplicities: npt.NDArray[np.integer] | None = None,
) -> EpochPlan:
    """Plans an epoch.

    Args:
        shard_lengths: S, rows in each shard, in the order of the index; rows of one shard stand together there.
        global_batch_size: G, samples per step over all ranks.
        seed: seed of the run.
        epoch: epoch, from 0.
        window: samples that a lane shuffles over.
        multiplicities: N, how often each row occurs in the epoch, 0 to leave it out; None for once.

    Raises:
        ConfigError: no samples, or an impossible batch size, window, seed or epoch.
    """
    if seed < 0 or epoch < 0:
        raise ConfigError(f"seed and epoch start at 0, got seed {seed} and epoch {epoch}")
    lengths = np.asarray(shard_lengths, dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    order = np.random.default_rng((_SHARDS, seed, epoch)).permutation(len(lengths))
    copies = None
    if multiplicities is not None:
        copies = np.concatenate([[0], np.cumsum(multiplicities, dtype=np.int64)])
        lengths = copies[starts + lengths] - copies[starts]
    sequence = ShardSequence(starts[order], np.cumsum(lengths[order]), copies)
    return EpochPlan(sequence, global_batch_size, seed, epoch, window)


def _window_walk(length: int, window: int, stream: tuple[int, ...]) -> tuple[IntArray, IntArray]:
    """Shuffles 0..length-1 within a sliding window.

    Position i gets the due time i + delay, with a delay drawn uniformly from [0, window); the order is by due time.
    This is what a shuffle buffer does, as one sort. A position leaves before every position that is `window` or more
    ahead of it, so at any step only `window` neighbouring positions can follow.

    Returns:
        The positions in their new order, and for each the largest position that had entered when it left.
    """
    delay = np.random.default_rng(stream).integers(0, window << _KEY_BITS, length)
    due = (np.arange(length, dtype=np.int64) << _KEY_BITS) + delay
    order = np.argsort(due, kind="stable")
    return order, due[order] >> _KEY_BITS


class SampleSpec(NamedTuple):
    """All that a worker needs to make one sample. Plain values, so that workers need neither index nor plan.

    Attributes:
        row: row of the index: where the sample lies.
        seed: what its random choices depend on (training only).
        partners: rows of three further samples if it becomes a mosaic, else none.
        part: part of the sample whose labels count (evaluation only); None for all of it.
        valid: False for a sample that only fills up the last evaluation batch.
    """

    row: IndexRow
    seed: SampleSeed | None = None
    partners: tuple[IndexRow, ...] = ()
    part: Window | None = None
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
    plan: EpochPlan,
    index: SplitIndex,
    lanes: range,
    *,
    start_step: int = 0,
    mosaic: float = 0.0,
) -> Iterator[BatchSpec]:
    """Yields a rank's part of each global batch, from a step on.

    Args:
        plan: plan of the epoch.
        index: the rows of the split.
        lanes: lanes of the rank.
        start_step: first step to take.
        mosaic: probability that a sample becomes a mosaic with three others of its lane's shuffle window.
    """
    schedule = plan.schedule(lanes, start_step)
    columns = (schedule.rows, schedule.occurrences, schedule.low, schedule.high)
    for step in range(len(schedule.rows)):
        samples = []
        for row, occurrence, low, high in zip(*(column[step].tolist() for column in columns), strict=True):
            seed = SampleSeed(plan.seed, plan.epoch, row, occurrence)
            partners = _mosaic_partners(plan, seed, low, high, mosaic)
            samples.append(SampleSpec(index[row], seed, tuple(index[partner] for partner in partners)))
        yield BatchSpec(start_step + step, tuple(samples))


def _mosaic_partners(plan: EpochPlan, seed: SampleSeed, low: int, high: int, probability: float) -> list[int]:
    if probability <= 0:
        return []
    generator = seed.partner_generator()
    if generator.random() >= probability:
        return []
    partners: list[int] = plan.sequence.rows(generator.integers(low, high, 3)).tolist()
    return partners

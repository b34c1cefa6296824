"""The plan of an epoch: which sample stands in which slot of which global batch. Pure arithmetic, without torch.

    samples of a split -> shards in an order of (seed, epoch) -> one long sequence of M positions
    -> cut into G lanes (one a slot of the global batch) -> each lane walked through its shuffle window
    -> step t of lane g is slot g of global batch t

Nothing here knows ranks or workers: a rank merely takes some of the lanes (`rank_lanes`), a worker some of the steps.
So the sequence of global batches depends on (seed, epoch, global batch size) and the index alone, and a run can stop
at any step and go on with another number of ranks and workers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from d2ls.errors import ConfigError

IntArray = npt.NDArray[np.int64]

DEFAULT_WINDOW = 256
"""Samples that a lane shuffles over."""

_SHARDS, _WALK, _ROUNDING, _PARTNERS, _AUGMENT = range(
    5
)  # what random numbers are for: each has its own stream
_KEY_BITS = 20  # resolution of the random delay in a shuffle window


def steps_per_epoch(samples: int, global_batch: int) -> int:
    """Returns the number of global batches that hold every sample once: the last one wraps around.

    Args:
        samples: slots to fill, at least 1 (the samples, counted with their multiplicities).
        global_batch: G, samples a step over all ranks.

    Raises:
        ConfigError: no samples, or a batch size below 1.
    """
    if global_batch < 1:
        raise ConfigError(f"the global batch needs at least 1 sample, got {global_batch}")
    if samples < 1:
        raise ConfigError("the split holds no samples: there is nothing to make an epoch of")
    return -(-samples // global_batch)


def rank_lanes(global_batch: int, rank: int, world_size: int) -> range:
    """Returns the contiguous lanes of a rank; the first ranks have one more where the split is uneven.

    Raises:
        ConfigError: more ranks than lanes, or a rank outside 0..world_size-1.
    """
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank {rank} is outside 0..{world_size - 1}")
    if world_size > global_batch:
        raise ConfigError(
            f"{world_size} ranks cannot share a global batch of {global_batch}: each rank needs a sample a step. "
            f"Use at most {global_batch} ranks, or a larger global batch"
        )
    share, extra = divmod(global_batch, world_size)
    first = rank * share + min(rank, extra)
    return range(first, first + share + (rank < extra))


class SampleSeed(NamedTuple):
    """Names one appearance of one sample in a run; its random choices depend on this alone.

    Attributes:
        seed: seed of the run.
        epoch: epoch, from 0.
        row: row of the sample in its split.
        occurrence: 0 for its first appearance in the epoch; others where it repeats.
    """

    seed: int
    epoch: int
    row: int
    occurrence: int

    def partner_generator(self) -> np.random.Generator:
        """Returns the stream that decides whether it becomes a mosaic, and with whom."""
        return np.random.default_rng((_PARTNERS, *self))

    def augment_generator(self) -> np.random.Generator:
        """Returns the stream of its augmentation."""
        return np.random.default_rng((_AUGMENT, *self))


def rounding_generator(seed: int, epoch: int) -> np.random.Generator:
    """Returns the stream that rounds repeat factors to whole numbers."""
    return np.random.default_rng((_ROUNDING, seed, epoch))


@dataclass(frozen=True)
class SampleSchedule:
    """Contents of a run of steps of some lanes; all arrays T x L, int64.

    Attributes:
        rows: row of the sample in the split.
        occurrences: 0 for the first appearance in the epoch, 1 for the second, ...; larger for the wrap-around.
        low: first position of the lane's shuffle window at that moment.
        high: position after the last one of that window.
    """

    rows: IntArray
    occurrences: IntArray
    low: IntArray
    high: IntArray


@dataclass(frozen=True)
class ShardSequence:
    """The rows of a split with their shards in a random order: M positions, looked up where they are needed.

    Nothing of length M is stored, so a rank of many pays for its own lanes and not for the whole epoch.

    Attributes:
        starts: S, first row of each shard, in the random order.
        ends: S, position after the last one of each shard.
        copies: N + 1, copies of all rows before each row (cumulated multiplicities); None where each row stands once.
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
        """Returns how often a row stands in the sequence."""
        return 1 if self.copies is None else int(self.copies[row + 1] - self.copies[row])


@dataclass(frozen=True)
class EpochPlan:
    """The plan of one epoch.

    Attributes:
        sequence: the rows in the order of the shuffled shards; a row stands as often as its multiplicity says.
        global_batch: G, slots of a step.
        seed: seed of the run.
        epoch: epoch, from 0.
        window: W, samples a lane shuffles over; 1 keeps the order of the shards.
    """

    sequence: ShardSequence
    global_batch: int
    seed: int
    epoch: int
    window: int = DEFAULT_WINDOW
    _lanes: dict[int, SampleSchedule] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        steps_per_epoch(len(self.sequence), self.global_batch)
        if self.window < 1:
            raise ConfigError(f"the shuffle window needs at least 1 sample, got {self.window}")

    @property
    def steps(self) -> int:
        """Global batches of the epoch, the same for every rank."""
        return steps_per_epoch(len(self.sequence), self.global_batch)

    @property
    def wrapped(self) -> int:
        """Samples that the last global batch takes a second time, to be full: below G."""
        return self.steps * self.global_batch - len(self.sequence)

    def lane_bounds(self, lane: int) -> tuple[int, int]:
        """Returns the range of positions of a lane; lengths differ by one at most."""
        samples = len(self.sequence)
        return lane * samples // self.global_batch, (lane + 1) * samples // self.global_batch

    def lane(self, lane: int) -> SampleSchedule:
        """Returns the whole walk of a lane, arrays of length `steps`."""
        if lane not in self._lanes:
            self._lanes[lane] = self._walk(lane)
        return self._lanes[lane]

    def schedule(self, lanes: Sequence[int], start_step: int = 0) -> SampleSchedule:
        """Returns the walks of some lanes side by side, from a step on: arrays (steps - start_step) x L.

        Raises:
            ConfigError: the start lies outside the epoch.
        """
        if not 0 <= start_step <= self.steps:
            raise ConfigError(f"start step {start_step} is outside the epoch's 0..{self.steps}")
        walks = [self.lane(lane) for lane in lanes]
        parts = (
            np.stack([getattr(walk, name)[start_step:] for walk in walks], axis=1)
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
        again = rows[:1] if len(rows) else self.sequence.rows([start])
        times = self.sequence.multiplicity(int(again[0])) + lane  # a stream no other slot has
        stop = max(stop, start + 1)
        return SampleSchedule(
            np.append(rows, again),
            np.append(occurrences, times),
            np.append(low, max(start, stop - self.window)),
            np.append(high, stop),
        )


def epoch_plan(
    shard_lengths: npt.ArrayLike,
    *,
    global_batch: int,
    seed: int,
    epoch: int,
    window: int = DEFAULT_WINDOW,
    multiplicities: npt.NDArray[np.integer] | None = None,
) -> EpochPlan:
    """Plans an epoch.

    Args:
        shard_lengths: S, rows in each shard, in the order of the index; rows of one shard stand together there.
        global_batch: G, samples a step over all ranks.
        seed: seed of the run.
        epoch: epoch, from 0.
        window: samples a lane shuffles over.
        multiplicities: N, how often each row stands in the epoch, at least 1; None for once.

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
    return EpochPlan(sequence, global_batch, seed, epoch, window)


def _window_walk(length: int, window: int, stream: tuple[int, ...]) -> tuple[IntArray, IntArray]:
    """Shuffles 0..length-1 so that at any moment only the last `window` positions are in play.

    Each position waits a random time of up to `window` positions and leaves when its time has come: what a shuffle
    buffer does, but as one sort, so that any step can be computed without walking there.

    Returns:
        The positions in their new order, and how far the sequence had been entered when each one left.
    """
    delay = np.random.default_rng(stream).integers(0, window << _KEY_BITS, length)
    due = (np.arange(length, dtype=np.int64) << _KEY_BITS) + delay
    order = np.argsort(due, kind="stable")
    return order, due[order] >> _KEY_BITS

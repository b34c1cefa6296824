"""The evaluation loader: every labelled pixel once, for any number of ranks and workers."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from d2ls.data.cache import CacheConfig, SplitShards
from d2ls.data.collate import Batch
from d2ls.data.dataset import BadSamples, BatchDataset, Verify
from d2ls.data.sampler import BatchSpec, SampleSpec
from d2ls.data.workers import PooledLoader, WorkerConfig
from d2ls.errors import ConfigError
from d2ls.shards import ShardSet
from d2ls.shards.codecs import PixelFormat
from d2ls.window import Window

_Place = tuple[int, Window | None]  # number of a row, and the part of it to score; None for all of it


def evaluation_window(shards: ShardSet, split: str, window: int) -> int | None:
    """Returns the `window` of an `EvaluationLoader`: that of the training, or None if no sample is larger."""
    rows = shards.rows(split)
    sides = [*rows["height"].to_pylist(), *rows["width"].to_pylist()]
    return window if max(sides, default=0) > window else None


class EvaluationLoader(PooledLoader):
    """This rank's evaluation batches; can be iterated any number of times, always the same batches.

    The split is cut into batches of one shape and a fixed size, the same for any number of ranks. Each rank takes a
    contiguous run of whole batches. One rank may have a batch more than another, or none at all, so the evaluation
    loop must not contain collective operations.

    Args:
        shards: the shard set.
        split: which of its splits.
        batch_size: samples per batch; does not depend on the number of ranks.
        rank: this rank.
        world_size: number of ranks.
        workers: decoding processes; 0 decodes in this process.
        window: side of the square windows in which samples are predicted, edge to edge. The last ones are moved back
            into the sample, and labels that an earlier window covers are 255 there. Samples smaller than a window are
            padded with 0 and 255. None takes samples whole.
        bad_samples: `raise`, or `skip` to leave a damaged sample unscored.
        skip_limit: how many samples this rank may skip.
        cache: local cache before an object store.
        prefetch: batches that each worker prepares in advance.
        pin_memory: whether batches arrive in page-locked memory.
        verify: when samples are compared with their checksums.
        start_method: how worker processes start.

    Raises:
        ConfigError: an impossible value.
        ShardError: no such split.
    """

    def __init__(
        self,
        shards: ShardSet,
        split: str,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        window: int | None = None,
        bad_samples: BadSamples = "raise",
        skip_limit: int = 10,
        cache: CacheConfig | None = None,
        prefetch: int = 2,
        pin_memory: bool = False,
        verify: Verify = "first",
        start_method: str = WorkerConfig.start_method,
    ) -> None:
        self.index = shards.split_index(split)
        self._batch_size = batch_size
        self._batches = _batches(self.index.sizes, batch_size, window)
        self._mine = _rank_share(len(self._batches), rank, world_size)
        dataset = BatchDataset(
            shards=SplitShards.of(shards, split),
            pixel_format=PixelFormat.of(shards.card),
            window=window,
            bad_samples=bad_samples,
            cache=cache,
            verify=verify,
        )
        super().__init__(dataset, WorkerConfig(workers, prefetch, pin_memory, start_method), skip_limit)

    def __len__(self) -> int:
        return len(self._mine)

    def __iter__(self) -> Iterator[Batch]:
        return self._load(self._specs())

    def _specs(self) -> Iterator[BatchSpec]:
        for step in self._mine:
            samples = [SampleSpec(self.index[row], part=part) for row, part in self._batches[step]]
            filling = [samples[-1]._replace(valid=False)] * (self._batch_size - len(samples))
            yield BatchSpec(step, (*samples, *filling))


def _batches(sizes: npt.NDArray[np.int64], batch_size: int, window: int | None) -> list[list[_Place]]:
    """Cuts a split into batches of one shape each; the last batch of a shape may be short.

    Args:
        sizes: N x 2, height and width of the samples.
        batch_size: samples per batch.
        window: side of the squares that samples are cut into, edge to edge; None takes samples whole.

    Raises:
        ConfigError: a batch size or window below 1.
    """
    if batch_size < 1 or (window is not None and window < 1):
        raise ConfigError(f"batch size and window need at least 1, got {batch_size} and {window}")
    places: list[_Place]
    if window is not None:
        places = [
            (row, Window(top, left, min(window, height - top), min(window, width - left)))
            for row, (height, width) in enumerate(sizes.tolist())
            for top in range(0, height, window)
            for left in range(0, width, window)
        ]
        return _chunks(places, batch_size)
    batches = []
    shapes, shape_of_row = np.unique(sizes, axis=0, return_inverse=True)
    for shape in range(len(shapes)):
        places = [(row, None) for row in np.flatnonzero(shape_of_row.ravel() == shape).tolist()]
        batches += _chunks(places, batch_size)
    return batches


def _chunks(places: list[_Place], size: int) -> list[list[_Place]]:
    return [places[start : start + size] for start in range(0, len(places), size)]


def _rank_share(batches: int, rank: int, world_size: int) -> range:
    """Returns the contiguous run of evaluation batches that a rank takes; it may be empty.

    Raises:
        ConfigError: a rank outside 0..world_size-1.
    """
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank {rank} is outside 0..{world_size - 1}")
    return range(rank * batches // world_size, (rank + 1) * batches // world_size)

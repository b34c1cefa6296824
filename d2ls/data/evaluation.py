"""The evaluation loader: every labelled pixel once, for any number of ranks and workers."""

from collections.abc import Iterator

from d2ls.data.cache import CacheConfig, SplitShards
from d2ls.data.collate import Batch
from d2ls.data.dataset import BadSamples, BatchDataset, Verify
from d2ls.data.decode import PixelFormat
from d2ls.data.orders import BatchSpec, evaluation_batches, evaluation_spec, rank_batches
from d2ls.data.workers import PooledLoader, WorkerConfig
from d2ls.shards import ShardSet


def evaluation_window(shards: ShardSet, split: str, window: int) -> int | None:
    """Returns the `window` of an `EvaluationLoader`: that of the training, or None if no sample is larger."""
    rows = shards.rows(split)
    sides = [*rows["height"].to_pylist(), *rows["width"].to_pylist()]
    return window if max(sides, default=0) > window else None


class EvaluationLoader(PooledLoader):
    """This rank's evaluation batches; can be iterated any number of times, always the same batches.

    The split is cut into batches of one shape and a fixed size, whoever evaluates: the network sees each sample in
    the same company on any number of ranks. They are dealt whole, a contiguous run to a rank; a rank may have one
    more than another or none, so the loop must hold no collective operation.

    Args:
        shards: the shard set.
        split: which of its splits.
        batch_size: samples of a batch; does not depend on the number of ranks.
        rank: this rank.
        world_size: number of ranks.
        workers: decoding processes; 0 decodes in this process.
        window: side of square windows that samples are cut into, edge to edge, the last ones padded with 0 and 255;
            None takes samples whole.
        bad_samples: `raise`, or `skip` to leave a damaged sample unscored.
        skip_limit: how many samples this rank may skip.
        cache: local cache before an object store.
        prefetch: batches that each worker may be ahead.
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
        self.records = shards.split_index(split)
        self._batch_size = batch_size
        self._batches = evaluation_batches(self.records.sizes, batch_size, window)
        self._mine = rank_batches(len(self._batches), rank, world_size)
        maker = BatchDataset(
            facts=SplitShards.of(shards, split),
            layout=PixelFormat.of(shards.card),
            window=window,
            bad_samples=bad_samples,
            cache=cache,
            verify=verify,
        )
        super().__init__(maker, WorkerConfig(workers, prefetch, pin_memory, start_method), skip_limit)

    def __len__(self) -> int:
        return len(self._mine)

    def __iter__(self) -> Iterator[Batch]:
        return self._made(self._orders())

    def _orders(self) -> Iterator[BatchSpec]:
        for step in self._mine:
            yield evaluation_spec(step, self._batches[step], self.records, self._batch_size)

"""For users of webdataset: the plan of an epoch as a source of a pipeline, and a way to read shards from S3.

    webdataset.DataPipeline(PlannedSource(shards, "train", ...), webdataset.decode("rgb8"), ...)

yields the raw samples of a rank in the order of the plan, the same samples as a `TrainingLoader`.
"""

from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import IO, Any

from torch.utils.data import IterableDataset, get_worker_info

from d2ls import storage
from d2ls.data.cache import CacheConfig, SplitShards, open_reader
from d2ls.data.reader import ShardReader, open_sample
from d2ls.data.sampler import (
    DEFAULT_WINDOW,
    BatchSpec,
    EpochPlan,
    SampleSpec,
    epoch_plan,
    rank_lanes,
    training_specs,
)
from d2ls.errors import StorageError
from d2ls.shards import ShardSet


class PlannedSource(IterableDataset[dict[str, Any]]):
    """Source stage of a `webdataset.DataPipeline`: the encoded samples of a rank, in the order of the plan.

    Each sample is a dictionary as webdataset's tar reader makes it (`__key__`, `__url__`, `image.png`, `mask.png`,
    `json`), plus `__seed__`. That is seed, epoch, row and occurrence, for stages that draw random numbers. In a
    DataLoader each worker takes whole steps in turn. With `webdataset.batched(n)`, where n is the number of lanes of
    the rank, batches arrive in the order of the plan for any number of workers.

    Args:
        shards: the shard set.
        split: which of its splits.
        global_batch_size: samples per step over all ranks.
        seed: seed of the run.
        epoch: epoch, from 0.
        start_step: first step to take.
        rank: this rank.
        world_size: number of ranks.
        shuffle_window: samples that a lane shuffles among.
        cache: local cache of an object store.

    Raises:
        ConfigError: an impossible value.
        ShardError: no such split.
    """

    def __init__(
        self,
        shards: ShardSet,
        split: str,
        *,
        global_batch_size: int,
        seed: int,
        epoch: int,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle_window: int = DEFAULT_WINDOW,
        cache: CacheConfig | None = None,
    ) -> None:
        super().__init__()
        self._index = shards.split_index(split)
        self._shards, self._cache = SplitShards.of(shards, split), cache
        self._lanes, self._start_step = rank_lanes(global_batch_size, rank, world_size), start_step
        self.plan: EpochPlan = epoch_plan(
            self._index.shard_lengths,
            global_batch_size=global_batch_size,
            seed=seed,
            epoch=epoch,
            window=shuffle_window,
        )

    @property
    def lanes(self) -> int:
        """Samples of this rank in each step."""
        return len(self._lanes)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        reader = open_reader(self._shards, self._cache)
        for spec in self._specs():
            for sample in spec.samples:
                yield _raw_sample(reader, self._shards.uri, sample)

    def _specs(self) -> Iterator[BatchSpec]:
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        specs = training_specs(self.plan, self._index, self._lanes, start_step=self._start_step)
        for step, spec in enumerate(specs):
            if step % count == number:
                yield spec


def register_opener(schemes: Iterable[str] = ("s3",)) -> None:
    """Makes webdataset read shards of an object store through pyarrow.fs; by itself it cannot read `s3://`."""
    # The attribute `gopen` of the package is a function, not this module.
    table = import_module("webdataset.gopen").gopen_schemes
    for scheme in schemes:
        table[scheme] = _open_stream


def _open_stream(url: str, mode: str = "rb", bufsize: int = 8192, **_: Any) -> IO[bytes]:
    if mode != "rb":
        raise StorageError(f"{url}: shards are opened for reading only, not with mode {mode!r}")
    system, path = storage.resolve(url)
    stream: IO[bytes] = system.open_input_stream(path)
    return stream


def _raw_sample(reader: ShardReader, uri: str, spec: SampleSpec) -> dict[str, Any]:
    row = spec.row
    image, mask, meta = open_sample(reader, row, "image", "mask", "meta")
    return {
        "__key__": row.key,
        "__url__": storage.join(uri, row.shard),
        "__seed__": spec.seed,
        f"image.{row.image_suffix}": image.content(),
        "mask.png": mask.content(),
        "json": meta.content(),
    }

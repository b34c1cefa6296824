"""The training loader: exact epochs over shards, for any number of ranks and workers, starting at any step."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from d2ls.data.cache import CacheConfig, SplitShards
from d2ls.data.collate import Batch
from d2ls.data.dataset import BadSamples, BatchDataset, Verify
from d2ls.data.sampler import (
    DEFAULT_WINDOW,
    BatchSpec,
    EpochPlan,
    epoch_plan,
    rank_lanes,
    subset,
    training_specs,
)
from d2ls.data.transforms import Augmentation
from d2ls.data.weighting import multiplicities, repeat_factors
from d2ls.data.workers import PooledLoader, WorkerConfig
from d2ls.errors import ConfigError
from d2ls.shards import ShardSet
from d2ls.shards.codecs import PixelFormat


@dataclass(frozen=True)
class EpochBatches:
    """This rank's batches of one epoch, from a step on. Iterate over it once.

    Attributes:
        loader: the loader it belongs to.
        plan: the plan of the epoch.
        start_step: first step.
    """

    loader: "TrainingLoader"
    plan: EpochPlan
    start_step: int

    def __len__(self) -> int:
        return self.plan.steps - self.start_step

    def __iter__(self) -> Iterator[Batch]:
        return self.loader._load(self.loader._specs(self))


class TrainingLoader(PooledLoader):
    """Makes the batches of any epoch. Worker processes start once and serve all epochs.

    Args:
        shards: the shard set.
        split: which of its splits.
        global_batch_size: G, samples per step over all ranks.
        augmentation: random changes, and the crop size.
        seed: seed of the run.
        rank: this rank.
        world_size: number of ranks, at most G.
        workers: worker processes of this rank; 0 works in this process. Has no effect on the batches.
        shuffle_window: samples that a lane shuffles among.
        fraction: share of the split's samples that is used, see `subset`; the class weighting sees no others.
        class_weighting: repeats samples of rare classes, from 0 (not at all) to 1 (inverse frequency).
        bad_samples: `raise`, or `skip` to replace a damaged sample by an empty image without labels.
        skip_limit: how many samples this rank may skip during the lifetime of the loader.
        cache: local cache of an object store; None reads it range by range.
        prefetch: batches that each worker prepares in advance.
        pin_memory: whether batches arrive in page-locked memory.
        verify: when samples are compared with their checksums: `always`, `first` time a process reads them, `never`.
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
        global_batch_size: int,
        augmentation: Augmentation,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        shuffle_window: int = DEFAULT_WINDOW,
        fraction: float = 1.0,
        class_weighting: float = 0.0,
        bad_samples: BadSamples = "raise",
        skip_limit: int = 10,
        cache: CacheConfig | None = None,
        prefetch: int = 2,
        pin_memory: bool = False,
        verify: Verify = "first",
        start_method: str = WorkerConfig.start_method,
    ) -> None:
        self.index = shards.split_index(split)
        self._lanes = rank_lanes(global_batch_size, rank, world_size)
        self._global_batch_size, self._seed, self._window = global_batch_size, seed, shuffle_window
        self._mosaic = augmentation.mosaic
        self._kept = subset(len(self.index), fraction, seed) if fraction != 1 else None
        self._factors = None
        if class_weighting:
            pixels = self.index.pixels_by_class()
            self._factors = repeat_factors(
                pixels if self._kept is None else pixels[self._kept], class_weighting
            )
        dataset = BatchDataset(
            shards=SplitShards.of(shards, split),
            pixel_format=PixelFormat.of(shards.card),
            augmentation=augmentation,
            bad_samples=bad_samples,
            cache=cache,
            verify=verify,
        )
        super().__init__(dataset, WorkerConfig(workers, prefetch, pin_memory, start_method), skip_limit)
        self.steps_per_epoch = self._plan(0).steps

    def epoch(self, epoch: int, start_step: int = 0) -> EpochBatches:
        """Returns the batches of an epoch from a step on, the same as in an uninterrupted run.

        Raises:
            ConfigError: a negative epoch, or a step outside the epoch.
        """
        plan = self._plan(epoch)
        if not 0 <= start_step <= plan.steps:
            raise ConfigError(f"start step {start_step} is outside the epoch's 0..{plan.steps}")
        return EpochBatches(self, plan, start_step)

    def _plan(self, epoch: int) -> EpochPlan:
        counts = None
        if self._factors is not None:
            counts = multiplicities(self._factors, seed=self._seed, epoch=epoch)
        if self._kept is not None:
            kept_counts, counts = counts, np.zeros(len(self.index), np.int64)
            counts[self._kept] = 1 if kept_counts is None else kept_counts
        return epoch_plan(
            self.index.shard_lengths,
            global_batch_size=self._global_batch_size,
            seed=self._seed,
            epoch=epoch,
            window=self._window,
            multiplicities=counts,
        )

    def _specs(self, batches: EpochBatches) -> Iterator[BatchSpec]:
        return training_specs(
            batches.plan, self.index, self._lanes, start_step=batches.start_step, mosaic=self._mosaic
        )

"""Worker processes of a loader: started once, fed with orders, in use for many epochs."""

import logging
import multiprocessing
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from d2ls.data.collate import Batch
from d2ls.data.dataset import BatchDataset
from d2ls.data.orders import BatchSpec
from d2ls.errors import ConfigError, D2LSError, DataError, ResourceError

START_METHOD = "forkserver"
"""How workers start. `fork` would copy a process with running threads (gRPC of Ray, the S3 client): a known way to
hang. The fork server is a fresh process that imports the loader once and is forked for each worker."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerConfig:
    """How batches are made beside the training.

    Attributes:
        workers: processes; 0 makes the batches in the calling process.
        prefetch: batches that each worker may be ahead: the bound of the memory in flight.
        pin_memory: whether batches arrive in page-locked memory.
        start_method: how processes start.
    """

    workers: int = 0
    prefetch: int = 2
    pin_memory: bool = False
    start_method: str = START_METHOD

    def __post_init__(self) -> None:
        if self.workers < 0 or self.prefetch < 1:
            raise ConfigError(f"workers start at 0 and prefetch at 1, got {self.workers} and {self.prefetch}")


class _Orders(Sampler[BatchSpec]):
    """What the DataLoader draws from: the orders of the epoch at hand."""

    def __init__(self) -> None:
        self.current: Iterator[BatchSpec] = iter(())

    def __iter__(self) -> Iterator[BatchSpec]:
        return self.current


class WorkerPool:
    """Makes batches from orders, in order, in this process or in others.

    Args:
        maker: what makes a batch.
        config: processes and prefetch.
    """

    def __init__(self, maker: BatchDataset, config: WorkerConfig) -> None:
        self._maker, self._config = maker, config
        self._orders = _Orders()
        self._loader: DataLoader[Batch | D2LSError] | None = None

    def run(self, orders: Iterator[BatchSpec]) -> Iterator[Batch]:
        """Yields the batch of each order. Of two runs, the later one ends the earlier one.

        Raises:
            DataError: a damaged sample.
            ResourceError: a worker process died.
        """
        for made in self._local(orders) if self._config.workers == 0 else self._remote(orders):
            if isinstance(made, D2LSError):
                self.close()
                try:
                    raise made
                finally:
                    del made  # else error, traceback and this frame keep each other alive
            yield made

    def close(self) -> None:
        """Ends the worker processes now; the next run starts new ones."""
        iterator = getattr(self._loader, "_iterator", None)
        self._loader = None
        if iterator is not None:  # by itself torch ends them only once nothing refers to the iterator
            iterator._shutdown_workers()

    def _local(self, orders: Iterator[BatchSpec]) -> Iterator[Batch | D2LSError]:
        for order in orders:
            made = self._maker[order]
            yield made.pin_memory() if self._config.pin_memory and isinstance(made, Batch) else made

    def _remote(self, orders: Iterator[BatchSpec]) -> Iterator[Batch | D2LSError]:
        if self._loader is None:
            self._loader = self._start()
        self._orders.current = orders
        try:
            yield from self._loader
        except (RuntimeError, OSError, EOFError) as error:
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            self.close()
            raise ResourceError(
                f"a loader worker died ({error!r}). Often it ran out of memory: use fewer workers, a smaller "
                "prefetch, or give shared memory (/dev/shm) more room"
            ) from error

    def _start(self) -> "DataLoader[Batch | D2LSError]":
        context = multiprocessing.get_context(self._config.start_method)
        if self._config.start_method == "forkserver":
            context.set_forkserver_preload(["d2ls.data.preload"])
        return DataLoader(
            _Orderly(self._maker),
            batch_size=None,
            sampler=self._orders,
            num_workers=self._config.workers,
            collate_fn=_unchanged,
            pin_memory=self._config.pin_memory,
            worker_init_fn=_Start(dict(os.environ)),
            multiprocessing_context=context,
            generator=torch.Generator(),  # so that starting an epoch leaves the random state of the training alone
            prefetch_factor=self._config.prefetch,
            persistent_workers=True,
        )


class SkipCounter:
    """Counts and logs skipped samples, and stops a run that skips too many.

    Args:
        limit: how many samples a run may skip.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.count = 0

    def see(self, batch: Batch) -> None:
        """Takes note of a batch.

        Raises:
            DataError: more samples were skipped than the limit allows.
        """
        for message in batch.skipped:
            self.count += 1
            _log.warning("bad sample %d of at most %d skipped: %s", self.count, self._limit, message)
        if self.count > self._limit:
            raise DataError(
                f"{self.count} bad samples skipped, the limit is {self._limit} (`skip_limit`); the last one: "
                f"{batch.skipped[-1] if batch.skipped else 'in an earlier batch'}"
            )


class PooledLoader:
    """What both loaders are: batches from a pool of workers, which the end of the `with` block ends.

    Args:
        maker: what makes a batch.
        config: processes and prefetch.
        skip_limit: how many samples this rank may skip in the life of the loader.
    """

    def __init__(self, maker: BatchDataset, config: WorkerConfig, skip_limit: int) -> None:
        self._pool, self._skips = WorkerPool(maker, config), SkipCounter(skip_limit)

    @property
    def skipped(self) -> int:
        """Bad samples skipped so far by this rank."""
        return self._skips.count

    def close(self) -> None:
        """Ends the worker processes."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _made(self, orders: Iterator[BatchSpec]) -> Iterator[Batch]:
        for batch in self._pool.run(orders):
            self._skips.see(batch)
            yield batch


class _Orderly(Dataset[Any]):
    """The maker as a map from order to batch."""

    def __init__(self, maker: BatchDataset) -> None:
        self._maker = maker

    def __getitem__(self, order: BatchSpec) -> Batch | D2LSError:
        return self._maker[order]


@dataclass(frozen=True)
class _Start:
    """Sets up a fresh worker: one thread each, and the environment of the process that asked for it.

    The fork server keeps the environment of the moment it was started; storage credentials may be newer.
    """

    environment: Mapping[str, str]

    def __call__(self, worker: int) -> None:
        import cv2

        cv2.setNumThreads(0)
        os.environ.clear()
        os.environ.update(self.environment)


def _unchanged(made: Any) -> Any:
    return made

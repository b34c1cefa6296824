"""Worker processes of a loader: started once, they make the batches of many epochs."""

import logging
import multiprocessing
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import cv2
import torch
from torch.utils.data import DataLoader, Sampler

from d2ls.data.collate import Batch
from d2ls.data.dataset import BatchDataset
from d2ls.data.sampler import BatchSpec
from d2ls.errors import ConfigError, D2LSError, DataError, ResourceError

START_METHOD = "forkserver"
"""How workers start. `fork` would copy a process with running threads (gRPC of Ray, the S3 client), which may hang.
The fork server is a fresh process that imports the loader once and is forked for each worker."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerConfig:
    """How batches are made in parallel to the training.

    Attributes:
        workers: number of processes; 0 makes the batches in the calling process.
        prefetch: batches that each worker prepares in advance; limits the memory in use.
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


class _EpochSampler(Sampler[BatchSpec]):
    """The sampler of the DataLoader: yields the specs of the current epoch."""

    def __init__(self) -> None:
        self.specs: Iterator[BatchSpec] = iter(())

    def __iter__(self) -> Iterator[BatchSpec]:
        return self.specs


class PooledLoader:
    """Base of both loaders: batches from a pool of workers. The end of the `with` block ends the workers.

    Args:
        dataset: makes a batch of a spec.
        config: processes and prefetch.
        skip_limit: how many samples this rank may skip during the lifetime of the loader.
    """

    def __init__(self, dataset: BatchDataset, config: WorkerConfig, skip_limit: int) -> None:
        self._dataset, self._config, self._skip_limit = dataset, config, skip_limit
        self._sampler = _EpochSampler()
        self._loader: DataLoader[Batch | D2LSError] | None = None
        self._bad: set[str] = set()  # messages, which name the sample

    @property
    def skipped(self) -> int:
        """Bad samples skipped so far by this rank; a sample that is read again counts once."""
        return len(self._bad)

    def close(self) -> None:
        """Ends the worker processes now; the next run starts new ones."""
        loader, self._loader = self._loader, None
        if loader is not None:
            end_workers(loader)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load(self, specs: Iterator[BatchSpec]) -> Iterator[Batch]:
        """Yields the batch of each spec, in order. A second call ends the first one.

        Raises:
            DataError: a damaged sample, or more samples were skipped than the limit allows.
            ResourceError: a worker process died.
        """
        for batch in self._in_process(specs) if self._config.workers == 0 else self._in_workers(specs):
            if isinstance(batch, D2LSError):
                self.close()
                try:
                    raise batch
                finally:
                    del batch  # breaks the reference cycle of error, traceback and this frame
            self._count_skipped(batch)
            yield batch

    def _count_skipped(self, batch: Batch) -> None:
        for message in batch.skipped:
            if message in self._bad:
                continue
            self._bad.add(message)
            _log.warning("bad sample %d of at most %d skipped: %s", self.skipped, self._skip_limit, message)
        if self.skipped > self._skip_limit:
            raise DataError(
                f"{self.skipped} bad samples skipped, the limit is {self._skip_limit} (`skip_limit`); the last one: "
                f"{batch.skipped[-1] if batch.skipped else 'in an earlier batch'}"
            )

    def _in_process(self, specs: Iterator[BatchSpec]) -> Iterator[Batch | D2LSError]:
        for spec in specs:
            batch = self._dataset[spec]
            yield batch.pin_memory() if self._config.pin_memory and isinstance(batch, Batch) else batch

    def _in_workers(self, specs: Iterator[BatchSpec]) -> Iterator[Batch | D2LSError]:
        if self._loader is None:
            self._loader = self._start()
        self._sampler.specs = specs
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
            self._dataset,
            batch_size=None,  # the dataset makes whole batches
            sampler=self._sampler,
            num_workers=self._config.workers,
            pin_memory=self._config.pin_memory,
            worker_init_fn=_InitWorker(dict(os.environ)),
            multiprocessing_context=context,
            generator=torch.Generator(),  # so that starting an epoch leaves torch's global random state alone
            prefetch_factor=self._config.prefetch,
            persistent_workers=True,
        )


def end_workers(loader: DataLoader[Any]) -> None:
    """Ends the worker processes of a DataLoader now.

    By itself torch ends persistent workers when nothing refers to the iterator any more, so a traceback or a paused
    generator would keep them. Uses private names of torch; tests/unit/d2ls/data/test_workers.py fails if they change.
    """
    if loader._iterator is not None:
        loader._iterator._shutdown_workers()  # type: ignore[attr-defined]


@dataclass(frozen=True)
class _InitWorker:
    """Sets up a fresh worker: one thread, and the environment of the process that started the loader.

    The fork server keeps the environment it was started with; storage credentials may be newer.
    """

    environment: Mapping[str, str]

    def __call__(self, worker: int) -> None:
        cv2.setNumThreads(0)
        os.environ.clear()
        os.environ.update(self.environment)

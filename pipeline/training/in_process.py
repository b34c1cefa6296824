"""Training in the calling process, without Ray: what fails is tried again from the newest checkpoint."""

import logging
from collections.abc import Generator

from d2ls.errors import D2LSError, StorageError, TrainingError
from pipeline.training import worker
from pipeline.training.worker import Job

_log = logging.getLogger(__name__)


def epochs(job: Job, *, max_failures: int) -> Generator[dict[str, float]]:
    """Trains in this process; yields the metrics of each new epoch.

    Closing the iterator stops the training after that epoch and frees what it holds. A storage that does not answer and
    errors of libraries are tried again; the project's other errors would only come again. What ends the process ends
    the training: it goes on by `--resume`.

    Args:
        job: what to train.
        max_failures: how often to try again.

    Raises:
        D2LSError: the training cannot go on.
    """
    told, failures, training = 0.0, 0, worker.epochs(job)
    try:
        while True:
            try:
                metrics = next(training)
            except StopIteration:
                return
            except Exception as error:
                failures += 1
                ours = isinstance(error, D2LSError)
                if ours and (failures > max_failures or not isinstance(error, StorageError)):
                    raise
                if failures > max_failures:
                    raise TrainingError(_words(error, job.name, failures)) from error
                words = f"{type(error).__name__}: {error}"
                _log.warning("run %s, failure %d of at most %d: %s", job.name, failures, max_failures, words)
                training = worker.epochs(job)
                continue
            if metrics["epoch"] > told:
                told = metrics["epoch"]
                yield metrics
    finally:
        training.close()


def _words(error: Exception, name: str, failures: int) -> str:
    return (
        f"run {name} failed {failures} time(s): {type(error).__name__}: {error}. Go on from its newest checkpoint with "
        f"--resume {name}"
    )

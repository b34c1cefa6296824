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
    told, failures = 0.0, 0
    while True:
        try:
            for metrics in worker.epochs(job):
                if metrics["epoch"] > told:
                    told = metrics["epoch"]
                    yield metrics
            return
        except Exception as error:
            known = isinstance(error, D2LSError)
            failures += 1
            if known and not isinstance(error, StorageError):
                raise
            words = str(error) if known else f"{type(error).__name__}: {error}"
            if failures <= max_failures:
                _log.warning("run %s, failure %d of at most %d: %s", job.name, failures, max_failures, words)
            elif known:
                raise
            else:
                raise TrainingError(
                    f"run {job.name} failed {failures} time(s): {words}. Go on from its newest checkpoint with "
                    f"--resume {job.name}"
                ) from error

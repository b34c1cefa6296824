"""Writes a run from the training process without ever making training wait: a queue on disk and a thread."""

import contextlib
import fcntl
import io
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from d2ls.errors import TrackingError
from pipeline.tracking import connection
from pipeline.tracking.spool import Entry, Spool

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOG = logging.getLogger(__name__)
BATCH = 500  # entries a request takes together; MLflow takes up to 1000 metrics
LONGEST_WAIT = 30.0
SPOOL_TAG = "d2ls.spool"


class RunWriter:
    """Puts metrics, pictures, texts and tags of a run into a queue on disk; a thread sends them.

    Whatever the store does (down, slow, refusing), calls return at once. What could not be sent when the writer is
    closed stays in the folder; `send_all` completes it later.

    Args:
        store_uri: complete URI of the store.
        run_id: run that is written.
        folder: local folder of the queue; entries that an earlier process left there are sent too.
        connect: makes the client; tests put their own here.
    """

    def __init__(
        self,
        store_uri: str,
        run_id: str,
        folder: Path,
        *,
        connect: "Callable[[str], MlflowClient] | None" = None,
    ) -> None:
        self.store_uri, self.run_id = store_uri, run_id
        self.spool = Spool(Path(folder))
        self._connect = connect
        self._wake, self._closing = threading.Event(), threading.Event()
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._work, name="run-writer", daemon=True)
        self._thread.start()

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Logs numbers of one step."""
        rows = [[key, float(value)] for key, value in values.items()]
        self._put("metrics", {"rows": rows, "step": step, "time": now()})

    def picture(self, key: str, image: npt.NDArray[np.uint8], step: int) -> None:
        """Logs a picture (H W 3, RGB) that moves with the step under its key."""
        self._put("picture", {"key": key, "step": step, "time": now()}, encode_png(image))

    def text(self, text: str, file: str) -> None:
        """Logs a text file."""
        self._put("text", {"text": text, "file": file})

    def tags(self, values: Mapping[str, str]) -> None:
        """Sets tags."""
        self._put("tags", {"tags": dict(values)})

    def close(self, timeout: float = 30.0) -> int:
        """Sends what is left for at most so many seconds; returns how many entries stay on disk."""
        self._deadline = time.monotonic() + timeout
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout + 5.0)
        left = len(self.spool)
        if left:
            LOG.warning(
                "%d log entries of run %s wait in %s: the store did not take them in time. The driver sends them at "
                "the end of the run; so does `python -m pipeline.doctor`.", left, self.run_id, self.spool.folder,
            )  # fmt: skip
        else:
            self.spool.remove()
        if self.spool.dropped:
            LOG.warning(
                "%d log entries were dropped: the queue %s was full", self.spool.dropped, self.spool.folder
            )
        return left

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _put(self, kind: str, values: dict[str, Any], png: bytes | None = None) -> None:
        self.spool.put(Entry(kind, self.run_id, values), png)
        self._wake.set()

    def _work(self) -> None:
        wait = 1.0
        while not self._finished():
            self._wake.wait(timeout=wait)
            self._wake.clear()
            try:
                self._send_some()
                wait = 1.0
            except Exception as error:  # a store fails in many ways; none may reach training
                LOG.info("tracking store %s: %s; trying again", self.store_uri, error)
                self._closing.wait(timeout=min(wait, max(self._deadline - time.monotonic(), 0.0)))
                wait = min(2 * wait, LONGEST_WAIT) if not self._closing.is_set() else 0.5

    def _finished(self) -> bool:
        return self._closing.is_set() and (time.monotonic() > self._deadline or not len(self.spool))

    def _send_some(self) -> None:
        if not len(self.spool):
            return
        connect = self._connect or connection.connect
        while time.monotonic() < self._deadline:
            with _alone(self.spool.folder):
                entries = self.spool.oldest(BATCH)
                if not entries:
                    return
                send(connect(self.store_uri), self.spool, entries)
            if not self._closing.is_set():
                time.sleep(0.2)  # lets a few entries gather


def send_all(client: "MlflowClient", folder: Path) -> int:
    """Sends what a closed or killed writer left in its folder; returns how many entries.

    Raises:
        TrackingError: the store does not take them; they stay.
    """
    if not folder.is_dir():
        return 0
    with _alone(folder):
        spool, sent = Spool(folder), 0
        while entries := spool.oldest(BATCH):
            try:
                send(client, spool, entries)
            except Exception as error:
                raise TrackingError(
                    f"{folder}: {len(spool)} log entries still wait; the store says: {error}"
                ) from error
            sent += len(entries)
        spool.remove()
    return sent


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lets one sender at a time take entries from a folder: a writer in its last attempt and the driver would
    both send them.
    """
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def send(client: "MlflowClient", spool: Spool, entries: Sequence[Entry]) -> None:
    """Sends entries in order, metrics of one run together, and deletes them from the queue."""
    metrics: list[Entry] = []
    for entry in entries:
        if entry.kind == "metrics" and (not metrics or entry.run_id == metrics[0].run_id):
            metrics.append(entry)
            continue
        _send_metrics(client, spool, metrics)
        metrics = [entry] if entry.kind == "metrics" else []
        if entry.kind != "metrics":
            _guarded(client, spool, [entry], _send_one)
    _send_metrics(client, spool, metrics)


def encode_png(image: npt.NDArray[np.uint8]) -> bytes:
    """Encodes H W 3 (RGB) as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()


def _send_metrics(client: "MlflowClient", spool: Spool, entries: list[Entry]) -> None:
    if entries:
        _guarded(client, spool, entries, _send_rows)


def _guarded(
    client: "MlflowClient",
    spool: Spool,
    entries: list[Entry],
    action: "Callable[[MlflowClient, list[Entry]], None]",
) -> None:
    """Sends; a refusal that no retry mends sets the entries aside instead of blocking the queue for ever."""
    from mlflow.exceptions import MlflowException

    try:
        action(client, entries)
    except MlflowException as error:
        if error.error_code not in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST"):
            raise
        if len(entries) > 1:  # find the one that is refused
            for entry in entries:
                _guarded(client, spool, [entry], action)
            return
        LOG.warning("the tracking store refuses an entry for good: %s", error)
        spool.refuse(entries[0])
        return
    except FileNotFoundError:  # its picture is gone: another process has sent it, or the disk lost it
        pass
    spool.done(entries)


def _send_rows(client: "MlflowClient", entries: list[Entry]) -> None:
    from mlflow.entities import Metric

    rows = [
        Metric(key, value, entry.values["time"], entry.values["step"])
        for entry in entries
        for key, value in entry.values["rows"]
    ]
    for start in range(0, len(rows), 1000):
        client.log_batch(entries[0].run_id, metrics=rows[start : start + 1000])


def _send_one(client: "MlflowClient", entries: list[Entry]) -> None:
    entry, values = entries[0], entries[0].values
    if entry.kind == "picture":
        from PIL import Image

        with Image.open(entry.picture) as image:
            client.log_image(
                entry.run_id, image, key=values["key"], step=values["step"], timestamp=values["time"]
            )
            client.log_image(entry.run_id, image, f"figures/{values['key']}.png")  # the newest, easy to find
    elif entry.kind == "text":
        client.log_text(entry.run_id, values["text"], values["file"])
    elif entry.kind == "tags":
        from mlflow.entities import RunTag

        client.log_batch(entry.run_id, tags=[RunTag(key, value) for key, value in values["tags"].items()])


def now() -> int:
    """Milliseconds since the epoch, as MLflow counts time."""
    return int(time.time() * 1000)

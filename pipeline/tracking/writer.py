"""Writes a run from the training process without delaying the training, through a queue on disk and a thread."""

import io
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from d2ls.errors import TrackingError
from d2ls.scratch import locked_folder
from pipeline.tracking import connection, mlflow_internals, run_tags
from pipeline.tracking.spool import Entry, Spool

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOG = logging.getLogger(__name__)
BATCH = 500  # entries that are taken from the queue together
PER_REQUEST = 1000
"""Largest number of metrics in one request."""
LONGEST_WAIT = 30.0


class RunWriter:
    """Puts metrics, pictures, texts and tags of a run into a queue on disk; a thread sends each of them once.

    Calls return at once, even if the store is down, slow or refuses. Entries that could not be sent when the writer is
    closed stay in the folder; `send_all` sends them later.

    Args:
        store_uri: complete URI of the store.
        run_id: run that is written to.
        folder: local folder of the queue; entries that an earlier process left there are sent too.
        connect: makes the client; tests pass their own.
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
        """Logs numbers of one step. NaN is left out, because databases treat it differently."""
        rows = [[metric_name(key), float(value)] for key, value in values.items() if not math.isnan(value)]
        self._put("metrics", {"rows": rows, "step": step, "time": now()})

    def picture(self, key: str, image: npt.NDArray[np.uint8], step: int | None = None) -> None:
        """Logs a picture (H W 3, RGB): with a step in the series `key`, without one as `key`.png."""
        self._put("picture", {"key": key, "step": step, "time": now()}, encode_png(image))

    def text(self, text: str, file: str) -> None:
        """Logs a text file."""
        self._put("text", {"text": text, "file": file})

    def tags(self, values: Mapping[str, str]) -> None:
        """Sets tags."""
        self._put("tags", {"tags": {key: run_tags.short(value) for key, value in values.items()}})

    def close(self, timeout: float = 30.0) -> int:
        """Sends the remaining entries for at most a number of seconds; returns how many stay on disk."""
        self._deadline = time.monotonic() + timeout
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout + 5.0)
        left = len(self.spool)
        if left:
            LOG.warning(
                "%d log entries of run %s wait in %s: the store did not take them in time. They are sent at the end of "
                "the run, or by `python -m pipeline.doctor`", left, self.run_id, self.spool.folder,
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
        wait, sender = 1.0, Sender()
        while not self._finished():
            self._wake.wait(timeout=wait)
            self._wake.clear()
            try:
                self._send_some(sender)
                wait = 1.0
            except Exception as error:  # a store fails in many ways, and none of them may end the training
                sender = Sender()  # the store may have processed a request without answering it
                LOG.info(
                    "tracking store %s: %s; trying again",
                    connection.shown(self.store_uri),
                    connection.shown(str(error)),
                )
                self._closing.wait(timeout=min(wait, max(self._deadline - time.monotonic(), 0.0)))
                wait = min(2 * wait, LONGEST_WAIT) if not self._closing.is_set() else 0.5

    def _finished(self) -> bool:
        return self._closing.is_set() and (time.monotonic() > self._deadline or not len(self.spool))

    def _send_some(self, sender: "Sender") -> None:
        if not len(self.spool):
            return
        connect = self._connect or connection.connect
        while time.monotonic() < self._deadline:
            with locked_folder(self.spool.folder):
                entries = self.spool.oldest(BATCH)
                if not entries:
                    return
                sender.send(connect(self.store_uri), self.spool, entries)
            if not self._closing.is_set():
                time.sleep(0.2)  # lets a few entries accumulate


def send_all(client: "MlflowClient", folder: Path) -> int:
    """Sends entries that a closed or killed writer left in its folder; returns their number.

    Raises:
        TrackingError: the store does not take them; they stay.
    """
    if not folder.is_dir():
        return 0
    with locked_folder(folder):  # a writer that is closing would send them too
        spool, sender, sent = Spool(folder), Sender(), 0
        while entries := spool.oldest(BATCH):
            try:
                sender.send(client, spool, entries)
            except Exception as error:
                unreachable = mlflow_internals.unreachable(error)
                kind = connection.UnreachableError if unreachable else TrackingError
                raise kind(
                    f"{folder}: {len(spool)} log entries still wait; the store says: {connection.shown(str(error))}"
                ) from error
            sent += len(entries)
        spool.remove()
    return sent


class Sender:
    """Sends entries in order, metrics of one run together, and deletes them from the queue.

    A point or a picture is skipped if the run already has its step. Repeats have two causes: a killed process may
    have sent an entry without deleting it, and a resumed training repeats the steps since its last checkpoint.
    """

    def __init__(self) -> None:
        self._steps: dict[str, dict[str, set[int]]] = {}
        self._pictures: dict[str, set[tuple[str, int]]] = {}

    def send(self, client: "MlflowClient", spool: Spool, entries: Sequence[Entry]) -> None:
        """Sends entries that were taken from a queue."""
        metrics: list[Entry] = []
        for entry in entries:
            if entry.kind == "metrics" and (not metrics or entry.run_id == metrics[0].run_id):
                metrics.append(entry)
                continue
            self._guarded(client, spool, metrics)
            metrics = [entry] if entry.kind == "metrics" else []
            if entry.kind != "metrics":
                self._guarded(client, spool, [entry])
        self._guarded(client, spool, metrics)

    def _guarded(self, client: "MlflowClient", spool: Spool, entries: list[Entry]) -> None:
        """Sends entries; one that the store will never take is set aside, so that it does not block the queue."""
        from mlflow.exceptions import MlflowException

        if not entries:
            return
        try:
            self._metrics(client, entries) if entries[0].kind == "metrics" else self._one(client, entries[0])
        except MlflowException as error:
            if error.error_code not in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST"):
                raise
            if len(entries) > 1:  # find the refused one
                for entry in entries:
                    self._guarded(client, spool, [entry])
                return
            LOG.warning("the tracking store refuses an entry for good: %s", error)
            spool.refuse(entries[0])
            return
        except FileNotFoundError:  # its picture does not exist: another process has sent it
            pass
        spool.done(entries)

    def _metrics(self, client: "MlflowClient", entries: list[Entry]) -> None:
        from mlflow.entities import Metric

        run_id = entries[0].run_id
        new = {  # of two points of a step, keep the later one
            (key, entry.values["step"]): Metric(key, value, entry.values["time"], entry.values["step"])
            for entry in entries
            for key, value in entry.values["rows"]
            if entry.values["step"] not in self._known_steps(client, run_id, key)
        }
        for batch in connection.batches(list(new.values()), PER_REQUEST):
            client.log_batch(run_id, metrics=batch)
        for key, step in new:
            self._steps[run_id][key].add(step)

    def _known_steps(self, client: "MlflowClient", run_id: str, key: str) -> set[int]:
        """Returns the steps that a metric already has in the store."""
        if run_id not in self._steps:
            self._steps[run_id] = {
                name: {point.step for point in client.get_metric_history(run_id, name)}
                for name in client.get_run(run_id).data.metrics
            }
        return self._steps[run_id].setdefault(key, set())

    def _one(self, client: "MlflowClient", entry: Entry) -> None:
        from mlflow.entities import RunTag

        values = entry.values
        if entry.kind == "picture":
            self._picture(client, entry)
        elif entry.kind == "text":
            client.log_text(entry.run_id, values["text"], values["file"])
        elif entry.kind == "tags":
            tags = [RunTag(key, value) for key, value in values["tags"].items()]
            for batch in connection.batches(tags, 100):
                client.log_batch(entry.run_id, tags=batch)

    def _picture(self, client: "MlflowClient", entry: Entry) -> None:
        from PIL import Image

        run_id, key, step = entry.run_id, entry.values["key"], entry.values["step"]
        with Image.open(entry.picture) as image:
            if step is None:
                client.log_image(run_id, image, f"{key}.png")
                return
            if run_id not in self._pictures:
                files = client.list_artifacts(run_id, mlflow_internals.PICTURES)
                self._pictures[run_id] = {mlflow_internals.picture_of(file.path) for file in files}
            if (key, step) in self._pictures[run_id]:
                return
            client.log_image(run_id, image, key=key, step=step, timestamp=entry.values["time"])
            self._pictures[run_id].add((key, step))
            client.log_image(run_id, image, f"figures/{key}.png")  # points to the newest picture


def encode_png(image: npt.NDArray[np.uint8]) -> bytes:
    """Encodes H W 3 (RGB) as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()


def metric_name(text: str) -> str:
    """Returns a name that MLflow accepts: class names may hold brackets, commas or quotes."""
    return re.sub(r"[^\w\-. :/]", "_", text)[:250].rstrip("/.") or "_"


def now() -> int:
    """Returns milliseconds since the epoch, MLflow's unit of time."""
    return int(time.time() * 1000)

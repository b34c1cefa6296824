"""Progress of a run: rank 0 writes it to the run folder, the driver shows it. No process, no port, no Ray."""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from d2ls import storage
from d2ls.errors import StorageError
from d2ls.training.callbacks import Callback, StepReport
from pipeline.console import ProgressDisplay, format_duration
from pipeline.training.run_folder import RunFolder

LOCAL_SECONDS, REMOTE_SECONDS = 0.5, 10.0
"""Least time between two writes of the latest step, on a local disk and to an object store."""


class ProgressWriter(Callback):
    """Writes the latest step now and then, in a thread of its own, and the metrics of every epoch.

    Args:
        folder: folder of the run.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._latest: dict[str, Any] | None = None
        self._notes: list[str] = []
        self._changed, self._stop = threading.Event(), threading.Event()
        self._pause = LOCAL_SECONDS if storage.is_local(folder.uri) else REMOTE_SECONDS
        self._recent: list[tuple[float, float]] = []
        self._handler = _NoteHandler(self._notes)
        for name in ("d2ls", "pipeline"):
            logging.getLogger(name).addHandler(self._handler)
            logging.getLogger(name).setLevel(logging.INFO)
        self._thread = threading.Thread(target=self._write, name="progress", daemon=True)
        self._thread.start()

    def on_start(self, history: Sequence[Mapping[str, float]]) -> None:
        """Adds epochs that a process before this one had no time to write; the checkpoint knows them."""
        self._folder.backfill_history(history)

    def on_step(self, report: StepReport) -> None:
        """Takes over the step."""
        self._recent = [
            *self._recent[-49:],
            (report.seconds.get("step", 0.0), report.seconds.get("data", 0.0)),
        ]
        total, waiting = (sum(column) for column in zip(*self._recent, strict=True))
        images = report.images_per_second * report.seconds.get("step", 0.0) * len(self._recent)
        self._latest = {
            "step": report.step,
            "epoch": report.epoch,
            "steps_per_epoch": report.steps_per_epoch,
            "total_steps": report.total_steps,
            "terms": dict(report.terms),
            "learning_rate": report.learning_rate,
            "gradient_norm": report.gradient_norm,
            "images_per_second": images / total if total else 0.0,
            "data_share": waiting / total if total else 0.0,
            "memory_bytes": report.memory_bytes,
            "seconds_left": (report.total_steps - report.step) * total / len(self._recent),
        }
        self._changed.set()

    def on_epoch(self, metrics: Mapping[str, float]) -> None:
        """Adds the epoch to the history."""
        extra = {}
        if self._latest:
            extra = {f"speed/{key}": self._latest[key] for key in ("images_per_second", "data_share")}
        self._folder.add_epoch({**metrics, **extra})

    def close(self) -> None:
        """Writes what is left."""
        self._stop.set()
        self._thread.join()
        for name in ("d2ls", "pipeline"):
            logging.getLogger(name).removeHandler(self._handler)

    def _write(self) -> None:
        while not self._stop.wait(self._pause):
            if self._changed.is_set():
                self._changed.clear()
                self._write_once()
        self._write_once()

    def _write_once(self) -> None:
        content = {**(self._latest or {}), "notes": list(self._notes), "time": time.time()}
        try:
            storage.write_bytes(self._folder.progress, json.dumps(content).encode(), sync=False)
        except StorageError as error:
            logging.getLogger(__name__).debug("progress is not shown: %s", error)


class _NoteHandler(logging.Handler):
    """Keeps warnings and remarks of the loop for the driver to show."""

    def __init__(self, notes: list[str]) -> None:
        super().__init__(logging.INFO)
        self._notes = notes

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a line."""
        self._notes.append(record.getMessage())


class ProgressWatcher:
    """Shows the latest step of a run folder while a run goes on, from a thread.

    Args:
        folder: folder of the run.
        show: called with the latest progress.
    """

    def __init__(self, folder: RunFolder, show: Callable[[Mapping[str, Any]], None]) -> None:
        self._folder, self._show = folder, show
        self._stop = threading.Event()
        self._pause = 0.3 if storage.is_local(folder.uri) else 5.0
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _follow(self) -> None:
        while not self._stop.wait(self._pause):
            self._look()

    def _look(self) -> None:
        try:
            if latest := self._folder.latest():
                self._show(latest)
        except Exception as error:  # what is only shown must not end the thread, nor mask an error of the run
            logging.getLogger(__name__).debug("progress is not shown: %s", error)


class ProgressView:
    """Shows a run on standard output; a context manager.

    Args:
        epochs: epochs of the run.
        silent: show nothing.
    """

    def __init__(self, epochs: int, *, silent: bool = False) -> None:
        self._epochs, self._notes = epochs, 0
        self._display = ProgressDisplay(stderr=False, silent=silent)

    def __enter__(self) -> Self:
        self._display.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._display.__exit__(*error)

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        self._display.say(text)

    def show(self, progress: Mapping[str, Any]) -> None:
        """Shows the latest step, and remarks of the workers."""
        notes = progress.get("notes", [])
        for note in notes[self._notes :]:
            self.say(f"  {note}")
        self._notes = len(notes)
        if "step" in progress:
            self._display.update(progress_line(progress, self._epochs))

    def epoch(self, metrics: Mapping[str, float]) -> None:
        """Prints the line of an epoch."""
        self.say(epoch_line(metrics, self._epochs))


def progress_line(progress: Mapping[str, Any], epochs: int) -> str:
    """Says where the run stands: step, loss terms, rate, speed, waiting for data, memory, time left."""
    terms = dict(progress["terms"])
    total = terms.pop("total", float("nan"))
    parts = " ".join(f"{_short(name)} {value:.3f}" for name, value in terms.items())
    step = (progress["step"] - 1) % progress["steps_per_epoch"] + 1
    return (
        f"epoch {progress['epoch']}/{epochs} step {step}/{progress['steps_per_epoch']}  loss {total:.3f} ({parts})  "
        f"lr {progress['learning_rate']:.2e}  {progress['images_per_second']:.1f} img/s  "
        f"data {progress['data_share']:.0%}  {progress['memory_bytes'] / 2**30:.1f} GiB  "
        f"about {format_duration(progress['seconds_left'])} left"
    )


def epoch_line(metrics: Mapping[str, float], epochs: int) -> str:
    """Says how an epoch went: loss, selection scores, IoU of every class."""
    line = f"epoch {metrics['epoch']:.0f}/{epochs}  loss {metrics.get('train/loss', float('nan')):.4f}"
    if "val/miou" in metrics:
        ious = {key.rsplit("/", 1)[1]: value for key, value in metrics.items() if key.startswith("val/iou/")}
        classes = " ".join(f"{name} {value:.3f}" for name, value in ious.items())
        accuracy = metrics.get("val/oa", float("nan"))
        line += f"  val mIoU {metrics['val/miou']:.4f}  OA {accuracy:.4f}  ({classes})"
    return line


def _short(name: str) -> str:
    return {"cross_entropy": "ce", "static_cross_entropy": "static", "contrastive": "contrast"}.get(
        name, name
    )

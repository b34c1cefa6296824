"""Writes the progress of a run into its folder, on rank 0. `progress_view` shows it in the driver; no port, no Ray."""

import json
import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from d2ls import storage
from d2ls.errors import StorageError
from d2ls.training.callbacks import Callback, StepReport
from d2ls.training.train_state import TrainingState
from pipeline.training.run_folder import RunFolder

LOCAL_SECONDS, REMOTE_SECONDS = 0.5, 10.0
"""Seconds between two writes of the latest step, on a local disk and to an object store."""

MOST_NOTES = 200


class ProgressWriter(Callback):
    """Writes the metrics of every epoch, and from a thread of its own the latest step.

    Args:
        folder: folder of the run.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._latest: dict[str, Any] | None = None
        self._end: dict[str, Any] = {}
        self._handler = _NoteHandler()
        self._changed, self._stop = threading.Event(), threading.Event()
        self._pause = LOCAL_SECONDS if storage.is_local(folder.uri) else REMOTE_SECONDS
        self._recent: list[tuple[float, float]] = []
        for name in ("d2ls", "pipeline"):
            logging.getLogger(name).addHandler(self._handler)
            logging.getLogger(name).setLevel(logging.INFO)
        self._thread = threading.Thread(target=self._write, name="progress", daemon=True)
        self._thread.start()

    def on_start(self, history: Sequence[Mapping[str, float]]) -> None:
        """Adds epochs that an earlier process did not write; the checkpoint has them."""
        self._folder.backfill_history(history)

    def on_step(self, report: StepReport) -> None:
        """Keeps the step for the next write."""
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
            **_outlook(report, total / len(self._recent)),
        }
        self._changed.set()

    def on_epoch(self, metrics: Mapping[str, float]) -> None:
        """Adds the epoch to the history."""
        extra = {}
        if self._latest:
            extra = {f"speed/{key}": self._latest[key] for key in ("images_per_second", "data_share")}
        self._folder.add_epoch({**metrics, **extra})

    def on_end(self, state: TrainingState) -> None:
        """Keeps why the training ended for the driver, which ends the run, and the time spent for a resume."""
        self._end = {"ended_early": state.ended_early, "seconds_spent": state.seconds}

    def close(self) -> None:
        """Writes the last step and ends the thread."""
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
        content = {**(self._latest or {}), **self._end, **self._handler.latest(), "time": time.time()}
        try:
            storage.write_bytes(self._folder.progress, json.dumps(content).encode(), sync=False)
        except StorageError as error:
            logging.getLogger(__name__).debug("progress is not written: %s", error)


def _outlook(report: StepReport, seconds_per_step: float) -> dict[str, float | bool]:
    """Returns how much of the training is done and left: its steps, or its time budget, which may end it before."""
    by_steps = (report.total_steps - report.step) * seconds_per_step
    budget = math.inf if report.time_budget is None else report.time_budget
    by_budget = max(0.0, budget - report.seconds_spent)
    return {
        "seconds_spent": report.seconds_spent,
        "seconds_left": min(by_steps, by_budget),
        "budget_ends_it": by_budget < by_steps,
        "share_done": min(1.0, max(report.step / report.total_steps, report.seconds_spent / budget)),
    }


class _NoteHandler(logging.Handler):
    """Keeps log messages of the training for the driver to show."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._notes: list[str] = []
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a message; drops the oldest one of many, because all are written again and again."""
        self._notes.append(record.getMessage())
        if len(self._notes) > MOST_NOTES:
            del self._notes[0]
            self._dropped += 1

    def latest(self) -> dict[str, Any]:
        """Returns `notes`, the latest messages, and `notes_before`, the number of older ones."""
        self.acquire()
        try:
            return {"notes": list(self._notes), "notes_before": self._dropped}
        finally:
            self.release()

"""Shows the progress of a run in the driver: reads what `ProgressWriter` wrote into the run folder."""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, Self

from pipeline.console import ProgressDisplay, format_duration
from pipeline.training.run_folder import RunFolder


class ProgressWatcher:
    """Reads the latest step of a run folder while the run goes on, in a thread of its own.

    Args:
        folder: folder of the run.
        show: called with the latest progress.
    """

    def __init__(self, folder: RunFolder, show: Callable[[Mapping[str, Any]], None]) -> None:
        self._folder, self._show = folder, show
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._poll()

    def _follow(self) -> None:
        while not self._stop.wait(self._folder.poll_seconds):
            self._poll()

    def _poll(self) -> None:
        try:
            if latest := self._folder.latest():
                self._show(latest)
        except Exception as error:  # a display error must not end the thread or hide an error of the run
            logging.getLogger(__name__).debug("progress is not shown: %s", error)


class ProgressView(ProgressDisplay):
    """Shows a run on standard output.

    Args:
        epochs: epochs of the run; None where its length is in steps.
        silent: show nothing.
    """

    def __init__(self, epochs: int | None, *, silent: bool = False) -> None:
        super().__init__(stderr=False, silent=silent)
        self._epochs, self._notes = epochs, 0

    def show(self, progress: Mapping[str, Any]) -> None:
        """Shows the latest step, and new log messages of the workers."""
        notes, before = progress.get("notes", []), progress.get("notes_before", 0)
        for note in notes[max(self._notes - before, 0) :]:
            self.say(f"  {note}")
        self._notes = before + len(notes)
        if "step" in progress:
            self.update(progress_line(progress))

    def epoch(self, metrics: Mapping[str, float]) -> None:
        """Prints the line of an epoch."""
        self.say(epoch_line(metrics, self._epochs))


def progress_line(progress: Mapping[str, Any]) -> str:
    """Returns a line on the latest step: loss terms, learning rate, speed, wait for data, memory, time left."""
    terms = dict(progress["terms"])
    total = terms.pop("total", float("nan"))
    parts = " ".join(f"{_short(name)} {value:.3f}" for name, value in terms.items())
    return (
        f"{place_of(progress)}  loss {total:.3f} ({parts})  "
        f"lr {progress['learning_rate']:.2e}  {progress['images_per_second']:.1f} img/s  "
        f"data {progress['data_share']:.0%}  {progress['memory_bytes'] / 2**30:.1f} GiB  "
        f"about {format_duration(progress['seconds_left'])} left"
        f"{' of the time budget' if progress.get('budget_ends_it') else ''}"
    )


def place_of(progress: Mapping[str, Any]) -> str:
    """Returns where the latest step of a run stands: `epoch 2/3 step 4/10`."""
    steps, total = progress["steps_per_epoch"], progress["total_steps"]
    step = (progress["step"] - 1) % steps + 1
    in_epoch = min(steps, total - (progress["epoch"] - 1) * steps)
    return f"epoch {progress['epoch']}/{-(-total // steps)} step {step}/{in_epoch}"


def epoch_line(metrics: Mapping[str, float], epochs: int | None) -> str:
    """Returns a line on an epoch: loss, validation scores, IoU of every class."""
    place = f"/{epochs}" if epochs else f" step {metrics['step']:.0f}"
    line = f"epoch {metrics['epoch']:.0f}{place}  loss {metrics.get('train/loss', float('nan')):.4f}"
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

"""How the driver shows progress: one live line on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Mapping
from typing import Any, Self

PLAIN_SECONDS = 15.0


class SilentView:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, text: str) -> None:
        """Nothing."""

    def show(self, progress: Mapping[str, Any]) -> None:
        """Nothing."""

    def epoch(self, metrics: Mapping[str, float]) -> None:
        """Nothing."""


class ProgressView(SilentView):
    """Shows a run on standard output.

    Args:
        epochs: epochs of the run.
    """

    def __init__(self, epochs: int) -> None:
        from rich.console import Console
        from rich.live import Live

        self._epochs, self._notes, self._shown = epochs, 0, 0.0
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._live = Live("", console=self._console, transient=True, auto_refresh=False)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        self._console.print(text, markup=False)

    def show(self, progress: Mapping[str, Any]) -> None:
        """Shows the latest step, and remarks of the workers."""
        notes = progress.get("notes", [])
        for note in notes[self._notes :]:
            self.say(f"  {note}")
        self._notes = len(notes)
        if "step" not in progress:
            return
        line = progress_line(progress, self._epochs)
        if self._console.is_terminal:
            self._live.update(line, refresh=True)
        elif time.monotonic() - self._shown > PLAIN_SECONDS:
            self._shown = time.monotonic()
            self.say(line)

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
        f"{clock(progress['seconds_left'])} left"
    )


def epoch_line(metrics: Mapping[str, float], epochs: int) -> str:
    """Says how an epoch went: loss, selection scores, IoU of every class."""
    line = f"epoch {metrics['epoch']:.0f}/{epochs}  loss {metrics.get('train/loss', float('nan')):.4f}"
    if "select/miou" in metrics:
        ious = {
            key.rsplit("/", 1)[1]: value for key, value in metrics.items() if key.startswith("select/iou/")
        }
        classes = " ".join(f"{name} {value:.3f}" for name, value in ious.items())
        accuracy = metrics.get("select/oa", float("nan"))
        line += f"  select mIoU {metrics['select/miou']:.4f}  OA {accuracy:.4f}  ({classes})"
    return line


def clock(seconds: float) -> str:
    """Formats a duration as 1:02:03 or 2:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _short(name: str) -> str:
    return {"cross_entropy": "ce", "static_cross_entropy": "static", "contrastive": "contrast"}.get(
        name, name
    )

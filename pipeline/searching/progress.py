"""Progress of a sweep: a line an epoch, with the time left."""

import time
from typing import TYPE_CHECKING

from pipeline.searching.report import METRIC, Trial
from pipeline.searching.space import describe

if TYPE_CHECKING:
    from rich.console import Console


class SweepProgress:
    """Prints what trials report; called with a trial and `epoch`, `finished`, `pruned` or `failed`."""

    def __init__(self, console: "Console", trials: int, epochs: int) -> None:
        self._console = console
        self._trials, self._epochs = trials, epochs
        self._ended: set[str] = set()
        self._done: dict[str, int] = {}
        self._started = time.monotonic()

    def __call__(self, trial: Trial, event: str) -> None:
        """Prints one line."""
        if event == "epoch":
            self._done[trial.key] = trial.epoch
        else:
            self._ended.add(trial.key)
            self._done[trial.key] = self._epochs
        score = f"{METRIC} {trial.score:.4f}" if trial.score is not None else "no score yet"
        words = f"epoch {trial.epoch}/{self._epochs}" if event == "epoch" else event
        ended = f"{len(self._ended)}/{self._trials} trials"
        self._console.print(
            f"  {ended} | {trial.key} {describe(trial.values)} | {words} | best {score} | {self._left()}",
            markup=False,
        )
        if event == "failed" and trial.error:
            self._console.print(f"    {trial.error}", markup=False)

    def _left(self) -> str:
        """Time left, from the epochs of all trials done since the start (start-up of trials counted in)."""
        done, total = sum(self._done.values()), self._trials * self._epochs
        if not done or done >= total:
            return "done" if done else "time left unknown"
        seconds = (time.monotonic() - self._started) * (total - done) / done
        return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left"

"""Output of a sweep: its progress, the table of trials, and the next commands."""

import os
import shlex
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.table import Table

from pipeline.console import format_duration
from pipeline.demo import is_demo
from pipeline.training.progress_view import place_of
from pipeline.tuning.report import HEADER, METRIC, SUMMARY_HEADER, SweepSummary, Trial
from pipeline.tuning.space import describe
from pipeline.tuning.state import resume_command

if TYPE_CHECKING:
    from pipeline.config import Recipe
    from pipeline.registry import ModelVersion
    from pipeline.tracking import Store

QUIET_SECONDS = 60.0
"""Seconds without a report of any trial after which a line shows the progress of all."""


class SweepProgress:
    """Prints what trials report; called with a trial and `epoch`, `finished`, `pruned` or `failed`.

    Args:
        console: where to print.
        trials: trials to run.
        epochs: epochs of a trial; None if its length is given in steps.
        running: returns the running trials.
        latest: returns the latest step of a trial (`progress.json` of its run folder); empty before the first.
        before: share of each trial that was done when this session began, by key.
        quiet: seconds without a report after which the progress of all trials is printed.
    """

    def __init__(
        self,
        console: Console,
        trials: int,
        epochs: int | None,
        running: Callable[[], Iterable[Trial]] = tuple,
        latest: Callable[[Trial], Mapping[str, Any]] = lambda _: {},
        before: Mapping[str, float] | None = None,
        quiet: float = QUIET_SECONDS,
    ) -> None:
        self._console = console
        self._trials, self._epochs = trials, epochs
        self._running, self._latest, self._quiet = running, latest, quiet
        self._ended: set[str] = set()
        self._before = sum((before or {}).values())
        self._done: dict[str, float] = dict(before or {})
        self._started = self._printed = time.monotonic()
        self._begun = time.time()
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._follow, name="sweep-progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)  # the thread may be waiting for an object store

    def __call__(self, trial: Trial, event: str) -> None:
        """Prints one line."""
        share = self._share(trial) if event == "epoch" else 1.0
        with self._lock:
            if event == "epoch":
                self._done[trial.key] = max(share, self._done.get(trial.key, 0.0))
            else:
                self._ended.add(trial.key)
                self._done[trial.key] = 1.0
            score = f"best {METRIC} {trial.score:.4f}" if trial.score is not None else "no score yet"
            epoch = f"epoch {trial.epoch}/{self._epochs}" if self._epochs else f"epoch {trial.epoch}"
            words = epoch if event == "epoch" else event
            self._say(f"{trial.key} {describe(trial.values)} | {words} | {score}")
            if event == "failed" and trial.error:
                self._console.print(f"    {trial.error}", markup=False, soft_wrap=True)

    def _share(self, trial: Trial) -> float:
        """Returns the share of a trial that is done; its time budget may end it before its last epoch."""
        try:
            share = share_done(self._latest(trial))
        except Exception:  # an error here must not stop the trials
            share = 0.0
        return max(share, trial.epoch / self._epochs if self._epochs else 0.0)

    def _follow(self) -> None:
        while not self._stop.wait(min(self._quiet, 5.0)):
            if time.monotonic() - self._printed >= self._quiet:
                self.look()

    def look(self) -> None:
        """Prints the progress of the running trials."""
        try:
            steps = [(trial, self._latest(trial)) for trial in self._running()]
            under_way = [(trial, at) for trial, at in steps if at.get("time", 0.0) > self._begun]
        except Exception:  # an error here must not stop the trials, nor later looks
            return
        with self._lock:
            standing = []
            for trial, at in under_way:
                if trial.key in self._ended or "step" not in at:
                    continue
                self._done[trial.key] = share_done(at)
                loss = at["terms"].get("total", float("nan"))
                standing.append(f"{trial.key} {place_of(at)} loss {loss:.3f}")
            self._say(", ".join(standing) or "trials are starting")

    def _say(self, words: str) -> None:
        self._printed = time.monotonic()
        ended = f"{len(self._ended)}/{self._trials} trials"
        self._console.print(f"  {ended} | {words} | {self._left()}", markup=False, soft_wrap=True)

    def _left(self) -> str:
        """Estimates the time left from the work of this session, including the start-up of trials."""
        if len(self._ended) >= self._trials:
            return "done"
        done = sum(self._done.values())
        left = self._trials - done
        if done <= self._before:
            return "time left unknown"
        seconds = (time.monotonic() - self._started) * left / (done - self._before)
        return f"about {format_duration(seconds)} left" if left > 0 else "nearly done"


def share_done(progress: Mapping[str, Any]) -> float:
    """Returns the share of a training that is done, by its latest step; 0 before the first."""
    share: float = progress.get("share_done", 0.0)
    return share


def show_trials(console: Console, summary: SweepSummary) -> None:
    """Prints the trial table and the verdict on noise."""
    shown: list[tuple[str, Sequence[str], list[list[str]]]] = [
        (f"Trials of {summary.name}", HEADER, summary.rows())
    ]
    if summary.has_seeds:
        shown.append(("Configurations", SUMMARY_HEADER, summary.summary_rows()))
    for title, header, rows in shown:
        table = Table(title=title, title_justify="left")
        for column in header:
            words = column in ("configuration", "status", "run")
            table.add_column(column, justify="left" if words else "right")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print(summary.verdict())


def show_next(
    console: Console, store: "Store", recipe: "Recipe", version: "ModelVersion", sweep: str, seeds: int
) -> None:
    """Prints the next commands, ready to be copied."""
    alias = "champion" if "champion" in version.aliases else "challenger"
    model = f"models:/{recipe.model_name}@{alias}"
    uri = shlex.quote(model)
    lines = [
        ("look at the runs", store.ui_command()),
        ("then open", store.run_list(recipe.experiment)),
        ("load the model", f"python -c \"import pipeline; print(pipeline.load_model('{model}'))\""),
        ("predict a map", f"python -m pipeline.predict {uri} IMAGE.tif MAP.tif"),
        ("evaluate it again", f"python -m pipeline.evaluate {uri} --shards {shlex.quote(recipe.shards.uri)}"
         f" --split {recipe.roles.test}"),
    ]  # fmt: skip
    if seeds == 1 and "seed" not in recipe.sweep.space:
        lines.append(
            ("train the best one with three seeds", f"{resume_command(recipe.output_dir, sweep)} --seeds 3")
        )
    if is_demo(recipe):
        lines.append(
            (
                "your own data",
                "copy recipes/own.yaml to my.yaml, edit it, then python -m pipeline.sweep my.yaml",
            )
        )
    if environment := os.environ.get("D2LS_ENVIRONMENT"):
        lines.insert(0, ("use the environment", f"source {shlex.quote(environment)}/bin/activate"))
    console.print("[bold]Next[/]")
    for words, command in lines:
        console.print(f"  {words}:", style="dim")
        console.print(f"    {command}", soft_wrap=True, markup=False)

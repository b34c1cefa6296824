"""What the commands print: stages, tables, and the exact next commands."""

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.config import Recipe
    from pipeline.tracking import ModelVersion, Store
    from pipeline.tuning.report import SweepSummary


def make_console() -> "Console":
    """A console that is as wide as the terminal, or 120 columns in a file."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def stage(console: "Console", words: str) -> None:
    """Announces a stage."""
    console.print(f"[bold cyan]==>[/] [bold]{words}[/]")


def in_words(seconds: float) -> str:
    """A duration, as roughly as an estimate is."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


LINE_SECONDS = 15.0
"""Where the output is no terminal, work that takes longer is told of this often."""


@contextmanager
def step_progress(title: str, *, silent: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Shows on the error stream how far a piece of work is: yields a function of steps done and steps in all."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    started = told = time.monotonic()
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=silent or not console.is_terminal
    ) as bar:
        task = bar.add_task(title, total=None)

        def advance(done: int, total: int) -> None:
            nonlocal told
            bar.update(task, completed=done, total=total)
            now = time.monotonic()
            if not silent and not console.is_terminal and now - told > LINE_SECONDS:
                told = now
                left = f", about {in_words((now - started) * (total - done) / done)} left" if done else ""
                console.print(f"{title}: {done}/{total}{left}", markup=False, soft_wrap=True)

        yield advance


def show_trials(console: "Console", summary: "SweepSummary") -> None:
    """Prints the trial table and the word about noise."""
    from rich.table import Table

    from pipeline.tuning.report import HEADER, SUMMARY_HEADER

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
    console: "Console", store: "Store", recipe: "Recipe", version: "ModelVersion", sweep: str
) -> None:
    """Prints what one would do next, ready to be copied."""
    uri = f"models:/{recipe.model_name}@{'champion' if 'champion' in version.aliases else 'challenger'}"
    lines = [
        ("look at the runs", store.ui_command()),
        ("then open", store.run_list(recipe.experiment)),
        ("pull the model", f"python -c \"import pipeline; print(pipeline.load_model('{uri}'))\""),
        ("map an image", f"python -m pipeline.predict {uri} IMAGE.tif MAP.tif"),
        ("evaluate it again", f"python -m pipeline.evaluate {uri} --shards {shlex.quote(recipe.shards.uri)}"
         f" --split {recipe.roles.test}"),
        ("resume this sweep", f"python -m pipeline.sweep --resume {sweep}"),
        ("your own data", "copy recipes/own.yaml, name your files and classes, python -m pipeline.sweep YOUR.yaml"),
    ]  # fmt: skip
    if environment := os.environ.get("D2LS_ENVIRONMENT"):
        lines.insert(0, ("use the environment", f"source {shlex.quote(environment)}/bin/activate"))
    console.print("[bold]Next[/]")
    for words, command in lines:
        console.print(f"  {words}:", style="dim")
        console.print(f"    {command}", soft_wrap=True, markup=False)

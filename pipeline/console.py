"""Output of commands to the terminal: headings, durations and the progress of long work."""

import sys
import time
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

LINE_SECONDS = 15.0
"""Seconds between two lines of progress if the output is not a terminal."""


def make_console(*, stderr: bool = False) -> Console:
    """Returns a console that is as wide as the terminal, or 120 columns if the output is not a terminal."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else 120)


def heading(console: Console, text: str) -> None:
    """Prints the heading of a stage."""
    console.print(f"[bold cyan]==>[/] [bold]{text}[/]")


def format_duration(seconds: float) -> str:
    """Formats a duration roughly: `42 s`, `10 min`, `2.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


class ProgressDisplay:
    """Shows the progress of a piece of work.

    On a terminal one line is replaced in place and vanishes at the end. Elsewhere a line is printed every
    `LINE_SECONDS`, so that short work prints none. Used as a context manager.

    Args:
        title: name of the work, shown in front of the progress.
        stderr: whether to write to the error stream, because results go to standard output.
        silent: show nothing.
    """

    def __init__(self, title: str = "", *, stderr: bool = True, silent: bool = False) -> None:
        self._title, self._silent = title, silent
        self._console = make_console(stderr=stderr)
        self._live = Live(console=self._console, transient=True)
        self._started = self._printed = time.monotonic()

    def __enter__(self) -> Self:
        self._started = self._printed = time.monotonic()
        if self._console.is_terminal and not self._silent:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def advance(self, done: int, total: int, note: str = "") -> None:
        """Shows the number of steps done and the estimated time left.

        Args:
            done: steps done.
            total: all steps.
            note: further information, e.g. a rate.
        """
        seconds = (time.monotonic() - self._started) * (total - done) / done if done else None
        left = "" if seconds is None else f"about {format_duration(seconds)} left"
        text = ", ".join(filter(None, (f"{done}/{total}", note, left)))
        if self._live.is_started:
            table = Table.grid(padding=(0, 1))
            table.add_row(Text(self._title), ProgressBar(total=total, completed=done, width=40), text)
            self._live.update(table)
        else:
            self._print_now_and_then(f"{self._title}: {text}")

    def update(self, line: str) -> None:
        """Shows a line in place of the last one."""
        if self._live.is_started:
            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"))
        else:
            self._print_now_and_then(line)

    def say(self, line: str) -> None:
        """Prints a line that stays."""
        if not self._silent:
            self._console.print(line, markup=False, soft_wrap=True)

    def _print_now_and_then(self, line: str) -> None:
        now = time.monotonic()
        if now - self._printed > LINE_SECONDS:
            self._printed = now
            self.say(line)

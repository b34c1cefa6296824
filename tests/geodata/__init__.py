"""Inputs from practice and the answer of each command: the rows of one test and of the table in docs/data.md.

The other files hold the rows. A row is a function that makes its files below `tmp_path` and
asserts the answer. `python -m tests.geodata` writes the table into docs/data.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "data.md"
BEGIN, END = "<!-- table of tests/geodata: begin -->", "<!-- table of tests/geodata: end -->"

Check = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """A row: the command (`shard` or `predict`), texts on the input and the answer, and the test."""

    command: str
    input: str
    answer: str
    check: Check


CASES: list[Case] = []


def case(
    input: str, answer: str, *, command: str = "shard"
) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Registers a function as a row; the texts are plain words without `|`."""

    def register(check: Check) -> Check:
        CASES.append(Case(command, input, answer, check))
        return check

    return register


def all_cases() -> list[Case]:
    """Imports the rows and returns them in the order of the files."""
    from tests.geodata import images, labels, maps, vectors  # noqa: F401

    return CASES


def table() -> str:
    """Returns the table as Markdown, between its two marks."""
    rows = [f"| {row.command} | {row.input} | {row.answer} |" for row in all_cases()]
    return "\n".join([BEGIN, "| command | input | answer |", "|---|---|---|", *rows, END])


def with_table(text: str) -> str:
    """Returns the text of the document with the current table in it."""
    before, after = text.split(BEGIN)[0], text.split(END)[-1]
    return before + table() + after

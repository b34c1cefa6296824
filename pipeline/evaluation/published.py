"""Published figures of other authors for a data set, read from published.yaml."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml


@dataclass(frozen=True)
class PublishedTable:
    """One table, in percent.

    Attributes:
        dataset: its name as printed.
        split: the split the figures are for.
        measure: `IoU` or `F1` of each class, or `means` if the table has no classes.
        columns: classes, then means.
        rows: model to its figures, in order of the columns.
        caution: why the figures are not directly comparable.
        order: our class id of each class column; None: our own order.
    """

    dataset: str
    split: str
    measure: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[float]]
    caution: str
    order: Sequence[int] | None = None


@cache
def published_tables() -> Mapping[str, PublishedTable]:
    """Returns all tables by the name of a source."""
    content = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    return {source: PublishedTable(**table) for source, table in content.items()}


def published_table(source: str) -> PublishedTable | None:
    """Returns the table of a data set (by the name of its source); None if nothing was published."""
    return published_tables().get(source.lower())

"""Output of `python -m pipeline.shard`: progress, tables, problems."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from d2ls.shards import DatasetCard
from pipeline.console import ProgressDisplay

if TYPE_CHECKING:
    from pipeline.config.recipe import Recipe
    from sharding.make import Progress
    from sharding.raster import RasterInfo
    from sharding.validate import Validation

PLACES = re.compile(r" in \d+ pixels, first at row \d+ column \d+")
"""Of unknown labels: counts and places, as `d2ls.labels` writes them."""

SHOWN_VALUES = 3
"""Values in a cell of the table of `--check`; the rest is counted."""


def progress_of(display: ProgressDisplay) -> Callable[["Progress"], None]:
    """Returns a function that shows the state of sharding: shards, samples and megabytes per second."""

    def show(state: "Progress") -> None:
        rate = state.bytes / 1e6 / max(state.seconds, 1e-6)
        note = f"{state.samples}/{state.total_samples} samples, {rate:.1f} MB/s"
        display.advance(state.shards, state.total_shards, note)

    return show


def print_summary(card: DatasetCard, uri: str) -> None:
    """Prints the tables of splits and classes, and notes."""
    console = Console()
    console.print(split_table(card))
    console.print(class_table(card))
    mean, std = ([f"{value:.4f}" for value in values] for values in (card.mean, card.std))
    console.print(
        f"bands {', '.join(card.bands)} ({card.dtype}), mean {', '.join(mean)}, std {', '.join(std)}"
    )
    console.print(f"scenes in one split only: {SCENE_CHECKS[card.scene_check]}")
    for name, count in card.extra.get("unlabelled", {}).items():
        console.print(f"split {name}: {count} image(s) without labels, left out (the publisher keeps them)")
    for code, count in card.extra.get("unexpected_labels", {}).items():
        console.print(f"unexpected label value {code}: {count} pixel(s) ignored")
    for warning in card.extra.get("warnings", []):
        console.print(f"warning: {warning}", soft_wrap=True, markup=False, highlight=False)
    console.print(f"digest {card.digest}", soft_wrap=True)
    console.print(f"shards, index, card and preview/ are in {uri}", soft_wrap=True)


SCENE_CHECKS = {
    "disjoint": "yes, checked",
    "unknown": "unknown, the data set does not name its scenes",
    "shared": "NO, some are in several (as published); scores will be too good",
}


def split_table(card: DatasetCard) -> Table:
    """Makes the table of splits."""
    table = Table(title=f"{card.name} ({card.source}, {card.protocol})")
    for name in ("split", "samples", "scenes", "shards", "MB", "ignored"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for name, split in card.splits.items():
        size = sum(shard.bytes for shard in split.shards) / 1e6
        pixels = split.ignored_pixels + sum(split.class_pixels)
        ignored = f"{100 * split.ignored_pixels / max(pixels, 1):.1f} %"
        counts = (str(split.samples), str(split.scenes), str(len(split.shards)))
        table.add_row(name, *counts, f"{size:.1f}", ignored)
    return table


def class_table(card: DatasetCard) -> Table:
    """Makes the table of classes: share of the labelled pixels of each split."""
    table = Table()
    for name in ("class", *card.splits):
        table.add_column(name, justify="left" if name == "class" else "right")
    for index, name in enumerate(card.classes.names):
        shares = [
            split.class_pixels[index] / max(sum(split.class_pixels), 1) for split in card.splits.values()
        ]
        mark = "" if card.classes.scored[index] else " (not scored)"
        table.add_row(name + mark, *(f"{100 * share:.2f} %" for share in shares))
    return table


def print_validation(validation: "Validation", root: str) -> None:
    """Prints the result of `--check`: the table of splits, omitted files, notes, warnings, problems."""
    scan = validation.scan
    console = Console()
    if scan.scenes:
        console.print(validation_table(validation))
    below = f"{Path(root).expanduser().absolute()}/"

    def show(title: str, lines: Sequence[str], style: str = "") -> None:
        if lines:
            console.print(f"[{style}]{title}[/]" if style else title, soft_wrap=True)
        for line in merge_alike(line.replace(below, "") for line in lines):
            console.print(f"- {line}", soft_wrap=True, markup=False, highlight=False)

    show("left out", [f"{item.count}: {item.why}, for instance {item.example}" for item in scan.left_out])
    show("notes", scan.notes)
    show("warnings", scan.warnings, "yellow")
    show("problems", scan.problems, "red")
    count = len(scan.problems)
    end = f"{count} problem(s) in {root}; nothing was written" if count else f"{root}: no problems found"
    console.print(end, soft_wrap=True)


def merge_alike(lines: Iterable[str]) -> list[str]:
    """Merges lines `file: text` with the same text: returns the first one with the number of the others.

    Counts and places of unknown labels differ from file to file; they are not compared.
    """
    groups: dict[str, list[str]] = {}
    for line in lines:
        text = PLACES.sub("", line.partition(": ")[2] or line)
        groups.setdefault(text, []).append(line)
    return [
        group[0]
        if len(group) == 1
        else f"{group[0].rstrip('.')} (and {len(group) - 1} more with the same text)"
        for group in groups.values()
    ]


def validation_table(validation: "Validation") -> Table:
    """Makes the table of `--check`, a column per split: properties of the files above, shares of the classes below."""
    scan = validation.scan
    splits = list(dict.fromkeys((*(item.scene.split for item in scan.scenes), *scan.unlabelled)))
    columns = {split: [item for item in scan.scenes if item.scene.split == split] for split in splits}
    table = Table(title=f"bands taken: {', '.join(scan.bands)} ({scan.dtype})", title_justify="left")
    table.add_column("")
    for split in splits:
        table.add_column(split, justify="right", overflow="fold")
    hidden = scan.unlabelled
    table.add_row("images", *(str(len(items) + hidden.get(split, 0)) for split, items in columns.items()))
    table.add_row("with labels", *(str(len(items)) for items in columns.values()))
    groups = [{item.scene.group for item in items} for items in columns.values()]
    table.add_row("scenes", *("unknown" if None in names else str(len(names)) for names in groups))
    properties: dict[str, Callable[[Any], str]] = {
        "size (height x width)": lambda item: f"{item.info.height}x{item.info.width}",
        "bands in the files": lambda item: str(item.info.bands),
        "pixel type": lambda item: item.info.dtype,
        "labels": lambda item: label_kind(item.labels),
        "CRS": lambda item: (item.info.crs or "none").split("[")[0],
        "pixel": lambda item: f"{item.pixel_metres:.3g} m" if item.pixel_metres else "unknown",
    }
    for name, text_of in properties.items():
        table.add_row(name, *(several([text_of(item) for item in items]) for items in columns.values()))
    counts = [validation.counts.get(split) for split in splits]
    table.add_row("ignored", *(f"{count.ignored_share:.1%}" if count else "" for count in counts))
    table.add_section()
    for index, name in enumerate(scan.classes.names):
        shares = (f"{c.classes[index] / max(c.labelled, 1):.2%}" if c else "" for c in counts)
        table.add_row(name + ("" if scan.classes.scored[index] else " (not scored)"), *shares)
    return table


def several(values: Sequence[str]) -> str:
    """Lists different values, one per line, the most frequent first; of many only the first ones and a count."""
    frequent = [value for value, _ in Counter(values).most_common()]
    shown = "\n".join(frequent[:SHOWN_VALUES])
    return shown + (f"\n{len(frequent) - SHOWN_VALUES} more" if len(frequent) > SHOWN_VALUES else "")


def label_kind(info: "RasterInfo | None") -> str:
    """Returns bands and type of a label image as text."""
    if info is None:
        return "vectors"
    return "palette" if info.palette else f"{info.bands} x {info.dtype}"


def print_verified(card: DatasetCard, uri: str) -> None:
    """Prints that a shard set agrees with its card."""
    console = Console()
    console.print(split_table(card))
    console.print(f"{uri}: checksums, counts, digests and splits agree with the card", soft_wrap=True)
    console.print(f"digest {card.digest}", soft_wrap=True)


def print_batches(path: Path, count: int, recipe: "Recipe") -> None:
    """Prints a description of the picture of batches."""
    batches = f"the first {count} batches" if count > 1 else "the first batch"
    what = f"{batches} of {recipe.train.global_batch_size}, split {recipe.roles.train}"
    Console().print(f"{path}: {what}, epoch 0, seed {recipe.seed}", soft_wrap=True, highlight=False)

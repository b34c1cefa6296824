"""What `python -m pipeline.shard` shows: progress, summary table, problems."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2ls.shards import DatasetCard
from pipeline.console import in_words

if TYPE_CHECKING:
    from pipeline.config.recipe import Recipe
    from pipeline.shard import Progress


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[["Progress"], None]]:
    """Shows shards, samples a second and time left; a line a shard where the output is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    rate = TextColumn("{task.fields[rate]}")
    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        rate,
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None, rate="reading headers")

        def advance(state: "Progress") -> None:
            text = rate_text(state)
            bar.update(task, total=state.total_samples, completed=state.samples, rate=text)
            if not console.is_terminal:
                console.print(f"{title}: shard {state.shards}/{state.total_shards}, {text}", highlight=False)

        yield advance


def rate_text(state: "Progress") -> str:
    """Says how fast it goes and how long it takes."""
    seconds = max(state.seconds, 1e-6)
    left = (state.total_shards - state.shards) * seconds / max(state.shards, 1)
    return (
        f"{state.samples}/{state.total_samples} samples, {state.bytes / 1e6 / seconds:.1f} MB/s, "
        f"about {in_words(left)} left"
    )


def print_summary(card: DatasetCard, uri: str) -> None:
    """Prints the table of splits and classes, and what to do next."""
    from rich.console import Console

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
    for code, count in card.extra.get("strays", {}).items():
        console.print(f"stray label {code}: {count} pixel(s) taken as ignored")
    console.print(f"digest {card.digest}", soft_wrap=True)
    console.print(f"shards, index, card and preview/ are in {uri}", soft_wrap=True)


SCENE_CHECKS = {
    "disjoint": "yes, checked",
    "unknown": "unknown, the data set does not name its scenes",
    "shared": "NO, some stand in several (as published); scores will be too good",
}


def split_table(card: DatasetCard) -> Any:
    """Makes the table of splits."""
    from rich.table import Table

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


def class_table(card: DatasetCard) -> Any:
    """Makes the table of classes: share of the labelled pixels a split."""
    from rich.table import Table

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


def print_problems(problems: Sequence[str], root: str) -> None:
    """Prints all problems of a check, or that there are none."""
    from rich.console import Console

    console = Console()
    for problem in problems:
        console.print(f"- {problem}", soft_wrap=True, markup=False, highlight=False)
    console.print(
        f"{len(problems)} problem(s) in {root}; nothing was written"
        if problems
        else f"{root}: no problems found",
        soft_wrap=True,
    )


def print_verified(card: DatasetCard, uri: str) -> None:
    """Prints that a shard set is what its card says."""
    from rich.console import Console

    console = Console()
    console.print(split_table(card))
    console.print(f"{uri}: checksums, counts, digests and splits agree with the card", soft_wrap=True)
    console.print(f"digest {card.digest}", soft_wrap=True)


def print_batches(path: Path, count: int, recipe: "Recipe") -> None:
    """Prints what the picture of batches shows."""
    from rich.console import Console

    what = f"the first {count} batches of {recipe.train.global_batch}, split {recipe.roles.train}"
    Console().print(f"{path}: {what}, epoch 0, seed {recipe.seed}", soft_wrap=True, highlight=False)

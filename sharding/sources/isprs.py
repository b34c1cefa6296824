"""Base of Potsdam and Vaihingen: classes, label colours, official parts, kinds of labels, the held-out part."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from d2ls.labels import IGNORE, ClassTable, LabelCodes
from sharding.files import FileRef, FileTree
from sharding.sources.base import Protocol, Scene, Source, choice, collect, names, refuse_unknown
from sharding.tiling import Tiling

CLASSES = ClassTable.create(
    ("impervious surface", "building", "low vegetation", "tree", "car", "clutter"),
    ((255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0)),
    (True, True, True, True, True, False),
)
"""Clutter stays in the confusion matrix, but out of the means: the convention of the benchmark."""

LABELS = ("full", "eroded", "auto")


class Isprs(Source):
    """A data set of the ISPRS 2D labelling contest; a tile is a scene.

    Options:
        val: tiles held out of the official training part (protocol `clean`; the `paper` protocol has no such part).
        drop: tiles left out.
        train_labels, eval_labels: `full`, `eroded` (borders of objects ignored), or `auto`: eroded if eroded labels of
            the split are on disk, else full; the card records which.
    """

    classes = CLASSES
    codes = LabelCodes.from_colors(
        {**{color: index for index, color in enumerate(CLASSES.palette)}, (0, 0, 0): IGNORE}
    )
    license = "ISPRS benchmark, research use"
    train_tiles: ClassVar[tuple[str, ...]]
    test_tiles: ClassVar[tuple[str, ...]]
    default_val: ClassVar[tuple[str, ...]]
    default_drop: ClassVar[tuple[str, ...]] = ()
    lossy_tiles: ClassVar[tuple[str, ...]] = ()
    departures: ClassVar[tuple[str, ...]] = ()
    released_stride: ClassVar[int] = 1024
    expected: ClassVar[str]

    def __init__(
        self, root: str | Path, protocol: Protocol, access: Mapping[str, bool], **options: Any
    ) -> None:
        rest = dict(options)
        known = self.train_tiles + self.test_tiles
        self._val = names(rest, "val", self.default_val, self.train_tiles)
        self._drop = names(rest, "drop", self.default_drop, known)
        self._kinds = {
            "train": choice(rest, "train_labels", "full", LABELS),
            "eval": choice(rest, "eval_labels", "auto", LABELS),
        }
        self._take_options(rest)
        refuse_unknown(rest, ("val", "drop", "train_labels", "eval_labels", *self.more_options), self.name)
        super().__init__(root, protocol, access)
        self.tiling = {"default": Tiling(1024)}
        if protocol == "paper":
            train = Tiling(1024, self.released_stride, edge="pad")
            self.tiling = {"default": Tiling(1024, edge="pad"), "train": train}

    more_options: ClassVar[tuple[str, ...]] = ()

    def _take_options(self, options: dict[str, Any]) -> None:
        """Reads further options and removes them from the mapping."""

    @abstractmethod
    def find(self, tree: FileTree) -> tuple[dict[str, FileRef], dict[str, FileRef], dict[str, FileRef]]:
        """Returns images, full labels and eroded labels by tile."""

    def scenes(self) -> Iterator[Scene]:
        """Yields the tiles of `train`, `val` (protocol `clean`) and `test`."""
        images, full, eroded = self.find(self.tree())
        if not images:
            raise self.nothing_found(self.expected)
        self._note_strangers(images)
        for split, tiles in self._parts().items():
            kind = self._kinds["train" if split == "train" else "eval"]
            if kind == "auto":
                kind = "eroded" if any(tile in eroded for tile in tiles) else "full"
            masks = eroded if kind == "eroded" else full
            self.extra.setdefault("labels", {})[split] = kind
            yield from self._split(split, tiles, images, masks, kind)
        if self.protocol == "paper":
            self.extra["departures"] = [
                "no part of train is held out: whatever is selected is selected on test",
                *self.departures,
            ]

    def _parts(self) -> dict[str, tuple[str, ...]]:
        held_out = self._val if self.protocol == "clean" else ()
        train = tuple(tile for tile in self.train_tiles if tile not in (*held_out, *self._drop))
        parts = {"train": train, "val": tuple(tile for tile in held_out if tile not in self._drop)}
        parts["test"] = tuple(tile for tile in self.test_tiles if tile not in self._drop)
        return {split: tiles for split, tiles in parts.items() if tiles}

    def _split(
        self,
        split: str,
        tiles: tuple[str, ...],
        images: Mapping[str, FileRef],
        masks: Mapping[str, FileRef],
        kind: str,
    ) -> Iterator[Scene]:
        present = [tile for tile in tiles if tile in images]
        hidden = split == "test" and not any(tile in masks for tile in present)
        for tile in present:
            if tile not in masks and not hidden:
                self.missing.append(
                    f"{images[tile]}: no {kind} label image for it ({split}). Unpack the labels again, or choose "
                    "others with data.options.train_labels and data.options.eval_labels"
                )
            else:
                lossy = tile in self.lossy_tiles
                if lossy:
                    self.notes.append(
                        f"{masks.get(tile)}: unknown colours near those of a class are taken as that class"
                    )
                tags = {"labels": kind}
                yield Scene(tile, split, images[tile], masks.get(tile), tile, tags, lossy_labels=lossy)
        orphans = [tile for tile in tiles if tile in masks and tile not in images]
        self.missing += [
            f"{masks[tile]}: no image for this label image. Unpack the images again" for tile in orphans
        ]

    def _note_strangers(self, images: Mapping[str, FileRef]) -> None:
        for tile, ref in images.items():
            if tile not in self.train_tiles + self.test_tiles:
                self.missing.append(f"{ref}: {tile} is no tile of the official lists; remove the file")


def complete_first(tree: FileTree, files: Iterable[tuple[str, FileRef]]) -> dict[str, FileRef]:
    """Returns a label image of each tile: one of the complete set, else one "for participants".

    The publisher offers both; the sets for participants hold the training tiles again.
    """
    complete: list[tuple[str, FileRef]] = []
    participants: list[tuple[str, FileRef]] = []
    for tile, ref in files:
        inside = str(ref).removeprefix(str(tree.root))
        (participants if "for_participants" in inside else complete).append((tile, ref))
    return {**collect(participants), **collect(complete)}

"""Grass: patches of 256x256 pixels, five degrees of grass cover.

    img_dir/{train,val}/*.tif        ann_dir/{train,val}/*.png   (palette PNG: the indices are the labels)

The published split is random, has two parts and no test part, and names no scenes. `clean` calls the published val part
`test` and takes a new `val` part out of train; `paper` keeps the published parts.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from d2ls.errors import ConfigError, nearest
from d2ls.labels import IGNORE, ClassTable, LabelCodes
from sharding.files import FileTree
from sharding.sources.base import Protocol, Scene, Source, collect, option, refuse_unknown
from sharding.sources.splitting import draw


class Grass(Source):
    """Reader of Grass; option `val`: `{fraction: 0.1, seed: 42}` or a list of file names without suffix."""

    name = "grass"
    classes = ClassTable.create(
        ("low", "middle-low", "middle", "middle-high", "high"),
        ((185, 101, 71), (248, 202, 155), (211, 232, 158), (138, 191, 104), (92, 144, 77)),
    )
    codes = LabelCodes.from_ids({**{index: index for index in range(5)}, IGNORE: IGNORE})

    def __init__(
        self, root: str | Path, protocol: Protocol, access: Mapping[str, bool], **options: Any
    ) -> None:
        rest = dict(options)
        default = {"fraction": 0.1, "seed": 42}
        allowed = "{fraction: 0.1, seed: 42} or a list of file names"
        self._val = option(rest, "val", default, _possible, allowed)
        refuse_unknown(rest, ("val",), self.name)
        super().__init__(root, protocol, access)

    def scenes(self) -> Iterator[Scene]:
        """Yields the patches: `train`, `val` and `test`, or `train` and `val` as published."""
        tree = self.tree()
        train, published = (list(self._part(tree, part)) for part in ("train", "val"))
        if not train and not published:
            raise self.nothing_found("img_dir/train/*.tif and ann_dir/train/*.png")
        if self.protocol == "paper":
            self.extra["departures"] = ["val selects and is reported: there is no test part"]
            parts = {"train": train, "val": published}
        else:
            held_out = self._held_out([key for key, _, _ in train])
            parts = {
                "train": [pair for pair in train if pair[0] not in held_out],
                "val": [pair for pair in train if pair[0] in held_out],
                "test": published,
            }
        for split, pairs in parts.items():
            for key, image, mask in pairs:
                yield Scene(key, split, image, mask)

    def _part(self, tree: FileTree, part: str) -> Iterator[tuple[str, Any, Any]]:
        images = collect((match[1], ref) for match, ref in tree.find(rf"img_dir/{part}/([^/]+)\.tif"))
        masks = collect((match[1], ref) for match, ref in tree.find(rf"ann_dir/{part}/([^/]+)\.png"))
        yield from self.pairs(images, masks)

    def _held_out(self, keys: list[str]) -> set[str]:
        if isinstance(self._val, dict):
            if len(keys) < 2:
                raise ConfigError(
                    f"data.options.val: {len(keys)} training image(s) cannot be divided; at least two are needed "
                    "below img_dir/train"
                )
            share = float(self._val["fraction"])
            splits = draw(keys, {"train": 1 - share, "val": share}, int(self._val.get("seed", 42)))
            return {key for key, split in splits.items() if split == "val"}
        names = {str(name) for name in self._val}
        unknown = sorted(names - set(keys))
        if unknown:
            raise ConfigError(
                f"data.options.val: no training image {unknown[0]!r}. {nearest(unknown[0], keys)}"
            )
        return names


def _possible(value: Any) -> bool:
    if isinstance(value, dict):
        share = value.get("fraction")
        return set(value) <= {"fraction", "seed"} and isinstance(share, float) and 0 < share < 1
    return isinstance(value, list | tuple)

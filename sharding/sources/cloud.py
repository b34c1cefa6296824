"""Cloud: patches of 512x512 pixels from the Landsat-8 Biome scenes, bands 4, 3, 2 stretched to 8 bit.

    img_dir/{train,val,test}/*.png        ann_dir/{train,val,test}/*.png

It is not documented whether the published split keeps scenes apart. This is checked if every file name holds a
Landsat scene id. The protocol `clean` refuses a scene in two splits; the option `resplit` divides the patches anew by
scene.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from d2ls.labels import IGNORE, ClassTable, LabelCodes
from sharding.files import FileTree, natural
from sharding.sources.base import Protocol, Scene, Source, collect, option, refuse_unknown
from sharding.sources.splitting import draw

LANDSAT = re.compile(r"L[COT]0?8_?(?:\d{13}[A-Z]{3}\d{2}|[A-Z0-9]{4}_\d{6}_\d{8})")
"""Scene ids before and after the collections: LC81570412014106LGN00, LC08_L1TP_223077_20140204."""

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}


class Cloud(Source):
    """Reader of the L8-Biome patches.

    Options:
        resplit: divide by Landsat scene 6:2:2 instead of taking the published split.
        seed: for `resplit`.
    """

    name = "cloud"
    classes = ClassTable.create(
        ("clear", "cloud shadow", "thin cloud", "cloud"),
        ((79, 253, 199), (221, 53, 223), (251, 255, 41), (77, 2, 115)),
    )
    codes = LabelCodes.from_ids({0: 0, 1: 1, 2: 2, 3: 3, IGNORE: IGNORE})
    ground_sampling_distance = 30.0
    advice = "Set data.options.resplit=true to divide the patches anew by scene"

    def __init__(
        self, root: str | Path, protocol: Protocol, access: Mapping[str, bool], **options: Any
    ) -> None:
        rest = dict(options)
        self._resplit = option(rest, "resplit", False, lambda value: isinstance(value, bool), "true, false")
        self._seed = option(rest, "seed", 0, lambda value: isinstance(value, int), "a whole number")
        refuse_unknown(rest, ("resplit", "seed"), self.name)
        super().__init__(root, protocol, access)

    def scenes(self) -> Iterator[Scene]:
        """Yields the patches."""
        tree = self.tree()
        patches = [scene for part in SHARES for scene in self._part(tree, part)]
        if not patches:
            raise self.nothing_found("img_dir/train/*.png and ann_dir/train/*.png")
        if any(scene.group is None for scene in patches):
            patches = [replace(scene, group=None) for scene in patches]
        if self._resplit:
            patches = self._divide(patches)
        elif self.protocol == "paper":
            self.extra["departures"] = ["the published split, whether or not it keeps scenes apart"]
        yield from patches

    def _part(self, tree: FileTree, part: str) -> Iterator[Scene]:
        images, masks = (
            collect((match[1], ref) for match, ref in tree.find(rf"{folder}/{part}/([^/]+)\.png"))
            for folder in ("img_dir", "ann_dir")
        )
        for key, image, mask in self.pairs(images, masks):
            match = LANDSAT.search(key)
            yield Scene(key, part, image, mask, match[0] if match else None)

    def _divide(self, patches: list[Scene]) -> list[Scene]:
        groups = sorted({scene.group for scene in patches if scene.group}, key=natural)
        if not groups:
            self.missing.append(
                "data.options.resplit needs Landsat scene ids in all file names, and some of these have none. Rename "
                "the files, or set data.options.resplit=false"
            )
            return patches
        splits = draw(groups, SHARES, self._seed)
        self.extra["resplit"] = {"by": "Landsat scene", "seed": self._seed}
        divided = [replace(scene, split=splits[scene.group or ""]) for scene in patches]
        return sorted(divided, key=lambda scene: list(SHARES).index(scene.split))

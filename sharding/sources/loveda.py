"""LoveDA: urban and rural scenes of three Chinese cities, 0.3 m (Zenodo 5706578).

    {Train,Val,Test}/{Urban,Rural}/{images_png,masks_png}/<n>.png

Raw labels: 0 no data, then the seven classes from 1. The official Test part has no labels and is left out; where a
Test part has them, it is offered as the split `test`. The images are cut from larger scenes that their names do not
tell, so whether two splits share one is not known.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from d2ls.labels import IGNORE, ClassTable, LabelCodes
from sharding.files import FileTree
from sharding.sources.base import Protocol, Scene, Source, collect, refuse_unknown
from sharding.sources.splitting import HeldOut


class LoveDA(Source):
    """Reader of LoveDA; option `select`: `{fraction: 0.1, seed: 42}`."""

    name = "loveda"
    classes = ClassTable.create(
        ("background", "building", "road", "water", "barren", "forest", "agriculture"),
        (
            (255, 255, 255),
            (255, 0, 0),
            (255, 255, 0),
            (0, 0, 255),
            (159, 129, 183),
            (0, 255, 0),
            (255, 195, 128),
        ),
    )
    codes = LabelCodes.from_ids({0: IGNORE, **{raw: raw - 1 for raw in range(1, 8)}})
    ground_sampling_distance = 0.3
    license = "CC BY-NC-SA 4.0"
    md5 = {
        "Train.zip": "de2b196043ed9b4af1690b3f9a7d558f",
        "Val.zip": "84cae2577468ff0b5386758bb386d31d",
        "Test.zip": "a489be0090465e01fb067795d24e6b47",
    }

    def __init__(
        self, root: str | Path, protocol: Protocol, access: Mapping[str, bool], **options: Any
    ) -> None:
        rest = dict(options)
        self._held_out = HeldOut.take(rest)
        refuse_unknown(rest, ("select",), self.name)
        super().__init__(root, protocol, access)

    def scenes(self) -> Iterator[Scene]:
        """Yields the scenes of Train, Val and Test; with the option `select` a part of Train under that name."""
        if self._held_out and self.protocol == "clean":
            yield from self._held_out.apply(self._official(), lambda scene: scene.id)
        else:
            yield from self._official()

    def _official(self) -> Iterator[Scene]:
        tree = self.tree()
        found = False
        for part in ("Train", "Val", "Test"):
            for scene in self._part(tree, part):
                found = True
                yield scene
        if not found:
            raise self.nothing_found(
                "Train/Urban/images_png/*.png and masks_png beside it, or Train.zip and Val.zip"
            )

    def _part(self, tree: FileTree, part: str) -> Iterator[Scene]:
        images, masks = (
            collect(
                (f"{match[1]}/{match[2]}", ref)
                for match, ref in tree.find(rf"{part}/(Urban|Rural)/{kind}_png/([^/]+)\.png")
            )
            for kind in ("images", "masks")
        )
        hidden = part == "Test" and not masks
        for key, image, mask in self.pairs(images, masks, masks_needed=not hidden):
            yield Scene(key, part.lower(), image, mask, tags={"area": key.split("/")[0]})

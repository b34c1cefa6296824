"""UAVid: oblique frames of 42 flight sequences over streets, 3840x2160 or 4096x2160, eight classes.

    uavid_{train,val,test}/seq<N>/{Images,Labels}/<frame>.png

Labels are colours. The official test part has no labels and is left out; with labels it becomes the split `test`. A
sequence is a scene. `paper` cuts as GeoSeg does: the last 2048 rows, widened to 4096 columns, in tiles of 1024.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2ls.labels import ClassTable, LabelCodes
from d2ls.window import Window
from sharding.files import FileRef
from sharding.raster import open_raster
from sharding.sources.base import Protocol, Scene
from sharding.sources.official import OfficialParts
from sharding.tiling import Tiling

OFFICIAL = {
    "train": (*range(1, 16), *range(31, 36)),
    "val": (*range(16, 21), 36, 37),
    "test": (*range(21, 31), *range(38, 43)),
}
"""Sequences of each part."""

PAPER_ROWS = 2048


class UAVid(OfficialParts):
    """Reader of UAVid; option `select`: `{fraction: 0.15, seed: 42}` of the sequences."""

    name = "uavid"
    classes = ClassTable.create(
        ("building", "road", "tree", "low vegetation", "moving car", "static car", "human", "clutter"),
        (
            (128, 0, 0),
            (128, 64, 128),
            (0, 128, 0),
            (128, 128, 0),
            (64, 0, 128),
            (192, 0, 192),
            (64, 64, 0),
            (0, 0, 0),
        ),
    )
    codes = LabelCodes.from_colors({color: index for index, color in enumerate(classes.palette)})
    license = "CC BY-NC-SA 4.0"
    tiling = {"default": Tiling(1024)}

    parts = ("train", "val", "test")
    kinds = ("Images", "Labels")
    pattern = r"uavid_{part}/(seq\d+)/{kind}/([^/]+)\.png"
    expected = "uavid_train/seq1/Images/000000.png and Labels beside it"

    def __init__(
        self, root: str | Path, protocol: Protocol, access: Mapping[str, bool], **options: Any
    ) -> None:
        super().__init__(root, protocol, access, **options)
        if protocol == "paper":
            self.tiling = {"default": Tiling(1024, edge="pad")}
            rows = f"only the last {PAPER_ROWS} rows of a frame are used, as in GeoSeg"
            self.extra["departures"].append(rows)

    def scene(self, key: str, split: str, image: FileRef, mask: FileRef | None) -> Scene:
        """Makes a scene of a frame; its sequence must belong to the part in whose folder it lies."""
        sequence = key.split("/")[0]
        self._check_part(sequence, split)
        region = None
        if self.protocol == "paper" and mask is not None:
            with open_raster(image) as raster:
                top = max(0, raster.info.height - PAPER_ROWS)
                region = Window(top, 0, raster.info.height - top, raster.info.width)
        return Scene(key, split, image, mask, sequence, region=region)

    def _check_part(self, sequence: str, part: str) -> None:
        number = int(sequence.removeprefix("seq"))
        official = next((name for name, numbers in OFFICIAL.items() if number in numbers), part)
        note = f"{sequence} is in uavid_{part}, officially it belongs to uavid_{official}; move it there"
        if official != part and note not in self.missing:
            self.missing.append(note)

"""ISPRS Potsdam: 38 tiles of 6000x6000 pixels, 5 cm.

    2_Ortho_RGB/top_potsdam_2_10_RGB.tif            3_Ortho_IRRG/..._IRRG.tif      4_Ortho_RGBIR/..._RGBIR.tif
    5_Labels_all/top_potsdam_2_10_label.tif         5_Labels_all_noBoundary/..._label_noBoundary.tif

unpacked or as the zips of the publisher. Tile 7_10 has known annotation errors and is dropped by default. The label
image of 4_12 in 5_Labels_all was compressed with loss, and in 6_7 most cars are (252, 255, 0): colours of these two
tiles are rounded.
"""

from typing import Any

from sharding.files import FileRef, FileTree
from sharding.sources.base import choice, collect
from sharding.sources.isprs import Isprs, complete_first

IMAGERY = {
    "RGB": ("red", "green", "blue"),
    "IRRG": ("nir", "red", "green"),
    "RGBIR": ("red", "green", "blue", "nir"),
}


class Potsdam(Isprs):
    """Reader of Potsdam; option `imagery`: RGB, IRRG or RGBIR."""

    name = "potsdam"
    ground_sampling_distance = 0.05
    train_tiles = (
        "2_10",
        "2_11",
        "2_12",
        "3_10",
        "3_11",
        "3_12",
        "4_10",
        "4_11",
        "4_12",
        "5_10",
        "5_11",
        "5_12",
        "6_7",
        "6_8",
        "6_9",
        "6_10",
        "6_11",
        "6_12",
        "7_7",
        "7_8",
        "7_9",
        "7_10",
        "7_11",
        "7_12",
    )
    test_tiles = (
        "2_13",
        "2_14",
        "3_13",
        "3_14",
        "4_13",
        "4_14",
        "4_15",
        "5_13",
        "5_14",
        "5_15",
        "6_13",
        "6_14",
        "6_15",
        "7_13",
    )
    default_val = ("2_12", "4_10", "5_12", "6_8", "7_9")
    default_drop = ("7_10",)
    lossy_tiles = ("4_12", "6_7")
    departures = (
        "label colours of 4_12 and 6_7 are rounded; GeoSeg takes unknown colours as impervious surface",
    )
    expected = (
        "2_Ortho_RGB/top_potsdam_2_10_RGB.tif and 5_Labels_all/top_potsdam_2_10_label.tif, or their zips"
    )
    more_options = ("imagery",)
    md5 = {"4_Ortho_RGBIR.zip": "c4a8f7d8c7196dd4eba4addd0aae10c1"}

    def _take_options(self, options: dict[str, Any]) -> None:
        self._imagery = choice(options, "imagery", "RGB", IMAGERY)
        self.bands = IMAGERY[self._imagery]

    def find(self, tree: FileTree) -> tuple[dict[str, FileRef], dict[str, FileRef], dict[str, FileRef]]:
        """Finds the tiles by file name, in any folder."""
        self.extra["imagery"] = self._imagery
        images, full, eroded = (
            [(match[1], ref) for match, ref in tree.find(rf"top_potsdam_(\d+_\d+)_{ending}\.tif")]
            for ending in (self._imagery, "label", "label_noBoundary")
        )
        return collect(images), complete_first(tree, full), complete_first(tree, eroded)

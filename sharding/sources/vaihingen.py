"""ISPRS Vaihingen: 33 areas, 9 cm, near-infrared red green.

    top/top_mosaic_09cm_area1.tif
    gts_for_participants/top_mosaic_09cm_area1.tif          (16 areas), or the complete labels in another folder
    ..._eroded_COMPLETE/top_mosaic_09cm_area1_noBoundary.tif

unpacked or as the zips of the publisher. Image and full label have the same file name: the file in `top` is the image.
"""

import re
from pathlib import PurePosixPath

from sharding.files import FileRef, FileTree
from sharding.sources.base import collect
from sharding.sources.isprs import Isprs, complete_first


class Vaihingen(Isprs):
    """Reader of Vaihingen."""

    name = "vaihingen"
    bands = ("nir", "red", "green")
    ground_sampling_distance = 0.09
    train_tiles = ("1", "3", "5", "7", "11", "13", "15", "17", "21", "23", "26", "28", "30", "32", "34", "37")
    test_tiles = (
        "2",
        "4",
        "6",
        "8",
        "10",
        "12",
        "14",
        "16",
        "20",
        "22",
        "24",
        "27",
        "29",
        "31",
        "33",
        "35",
        "38",
    )
    released_stride = 512
    default_val = ("11", "15", "28", "30")
    expected = (
        "top/top_mosaic_09cm_area1.tif and gts_for_participants/top_mosaic_09cm_area1.tif, or their zips"
    )
    md5 = {
        "ISPRS_semantic_labeling_Vaihingen.zip": "462b8dca7b6fa9eaf729840f0cdfc7f3",
        "ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE.zip": "4802dd6326e2727a352fb735be450277",
    }

    def find(self, tree: FileTree) -> tuple[dict[str, FileRef], dict[str, FileRef], dict[str, FileRef]]:
        """Finds the areas; if several folders hold labels, the complete ones are used."""
        images: list[tuple[str, FileRef]] = []
        full: list[tuple[str, FileRef]] = []
        eroded: list[tuple[str, FileRef]] = []
        for name, ref in tree.files.items():
            path = PurePosixPath(name)
            match = re.fullmatch(r"top_mosaic_09cm_area(\d+)(_noBoundary)?\.tif", path.name)
            if match:
                labels = eroded if match[2] else full
                (images if path.parent.name == "top" else labels).append((match[1], ref))
        return collect(images), complete_first(tree, full), complete_first(tree, eroded)

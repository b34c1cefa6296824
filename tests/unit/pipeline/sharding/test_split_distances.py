"""Notes on the distance between the ground of two splits."""

import numpy as np
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS

from sharding.raster.vectors import write_features
from tests.geodata.tiffs import pixels, tif
from tests.geodata.world import notes, problems

SPLITS = np.array(["train", "val", "test"], object)
METRES, FEET, DEGREES = (CRS.from_epsg(code) for code in (26914, 2263, 4326))


def areas(root, crs, pixel, top=900.0):
    """Makes an image of 128 x 192 pixels with `val` two rows of pixels below `train`, and `test` far below both."""
    place = Affine(pixel, 0, 30, 0, -pixel, top)
    tif(root / "images" / "a.tif", pixels(), crs=crs, transform=place)
    corners = [
        (*(place @ (0, first)), *(place @ (192, last))) for first, last in ((0, 20), (22, 42), (90, 128))
    ]
    boxes = np.array([shapely.box(*corner) for corner in corners], object)
    write_features(root / "area.gpkg", "land", boxes, {"part": SPLITS}, crs)
    return {
        "masks": [],
        "vectors": {"files": "area.gpkg", "attribute": "part", "values": {"a": ["train", "val", "test"]}},
        "area": {"files": "area.gpkg"},
        "split": {"areas": "part"},
    }


@pytest.mark.parametrize(
    ("crs", "pixel", "expected"),
    [
        (METRES, 0.25, "0.50 m"),
        (FEET, 0.25 / 0.3048006, "0.50 m"),
        (DEGREES, 0.25 / 111_320, "0.50 m"),
        (None, 0.25, "0.50 units of a CRS that the images do not name"),
    ],
    ids=["metres", "feet", "degrees", "none"],
)
def test_the_distance_of_two_splits_is_in_metres(tmp_path, crs, pixel, expected):
    text = notes(tmp_path, **areas(tmp_path, crs, pixel, top=0.001 if crs is DEGREES else 900.0))
    assert f"data.custom.area: labelled ground of train and val is {expected} apart" in text
    assert text.count("apart") == 1


def test_images_in_two_crs_are_not_compared_as_if_they_were_in_one(tmp_path):
    """Both have the same coordinates, in neighbouring zones; `val` of one lies on `train` of the other."""
    custom = areas(tmp_path, METRES, 0.25)
    place = Affine(0.25, 0, 30, 0, -0.25, 900)
    tif(tmp_path / "images" / "b.tif", pixels(1), crs=CRS.from_epsg(26915), transform=place)
    box = np.array([shapely.box(*(place @ (0, 0)), *(place @ (192, 20)))], object)
    write_features(tmp_path / "more.gpkg", "land", box, {"part": SPLITS[1:2]}, CRS.from_epsg(26915))
    for section in ("area", "vectors"):
        custom[section]["files"] = "*.gpkg"
    assert "overlap" not in problems(tmp_path, **custom)
    assert notes(tmp_path, **custom).count("apart") == 1

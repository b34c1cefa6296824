"""A small GeoTIFF and its content."""

import warnings
from pathlib import Path

import numpy as np
import rasterio
import rasterio.errors
from affine import Affine

CRS = "EPSG:26914"
PIXEL = 0.6
HEIGHT, WIDTH = 128, 192
PLACE = Affine(PIXEL, 0, 500_000, 0, -PIXEL, 4_000_000)
"""Grid of `tif` where none is given: north up, UTM metres."""


def pixels(number=0, height=HEIGHT, width=WIDTH, bands=3, dtype="uint8"):
    """An image (bands H W) without zeros; differs from number to number and from pixel to pixel."""
    values = np.random.default_rng(number).integers(1, 255, (bands, height, width))
    return values.astype(dtype)


def ids(number=0, height=HEIGHT, width=WIDTH):
    """A label image (H W) in which the ids 0, 1 and 2 stand in blocks of 16 pixels."""
    cells = np.random.default_rng(number).integers(0, 3, (-(-height // 16), -(-width // 16)))
    cells[0, :3] = 0, 1, 2
    return np.kron(cells, np.ones((16, 16))).astype(np.uint8)[:height, :width]


def tif(path, array, *, crs=CRS, transform=PLACE, after=None, **profile):
    """Writes a GeoTIFF (or another format by `driver`) of an array (H W or bands H W); returns its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    array = array[None] if array.ndim == 2 else array
    count, height, width = array.shape
    profile = {"driver": "GTiff", "crs": crs, "transform": transform, **profile}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(
            path, "w", height=height, width=width, count=count, dtype=array.dtype, **profile
        ) as file:
            file.write(array)
            if after:
                after(file)
    return path

"""Reads images, label images and scenes: one reader and one rule for sharding and prediction.

Headers and pixels of a file: `base`; the formats: `gdal`, `whole`; choice of bands: `bands`; label images: `labels`;
comparison of the grids of image and label image: `grids`; scenes to map: `scene`.
"""

from sharding.raster.base import Pixels, Raster, RasterInfo, Reading
from sharding.raster.gdal import GDAL_CACHE_BYTES
from sharding.raster.labels import read_labels
from sharding.raster.reader import open_raster
from sharding.raster.whole import MAX_WHOLE_PIXELS, WholeRaster

__all__ = [
    "GDAL_CACHE_BYTES",
    "MAX_WHOLE_PIXELS",
    "Pixels",
    "Raster",
    "RasterInfo",
    "Reading",
    "WholeRaster",
    "open_raster",
    "read_labels",
]

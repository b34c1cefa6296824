"""Reading images, label images and scenes: one reader, one rule for sharding and prediction.

What a file says and how it is read: `base`; the formats: `gdal`, `whole`; which bands: `bands`; label images: `labels`;
whether image and label image lie on one grid: `grids`; scenes to be mapped: `scene`.
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

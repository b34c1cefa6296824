"""Reading images, label images and scenes: one reader for sharding and prediction."""

from sharding.raster.base import Pixels, Raster, RasterInfo
from sharding.raster.gdal import GDAL_CACHE_BYTES
from sharding.raster.reader import open_raster
from sharding.raster.whole import MAX_WHOLE_PIXELS, WholeRaster

__all__ = [
    "GDAL_CACHE_BYTES",
    "MAX_WHOLE_PIXELS",
    "Pixels",
    "Raster",
    "RasterInfo",
    "WholeRaster",
    "open_raster",
]

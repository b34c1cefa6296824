"""Reading images, label images and scenes: one reader for sharding and prediction."""

from sharding.raster.reader import (
    GDAL_CACHE_BYTES,
    MAX_WHOLE_PIXELS,
    Pixels,
    Raster,
    RasterInfo,
    WholeRaster,
    open_raster,
)

__all__ = [
    "GDAL_CACHE_BYTES",
    "MAX_WHOLE_PIXELS",
    "Pixels",
    "Raster",
    "RasterInfo",
    "WholeRaster",
    "open_raster",
]

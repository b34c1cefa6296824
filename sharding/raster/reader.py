"""Opening an image by its suffix."""

from d2ls.errors import DataError
from sharding.files import FileRef
from sharding.raster.base import Raster
from sharding.raster.gdal import TIFF_SUFFIXES, GdalRaster
from sharding.raster.whole import WHOLE_SUFFIXES, WholeRaster


def open_raster(ref: FileRef) -> Raster:
    """Opens an image by its suffix; only the header is read.

    Raises:
        DataError: unknown suffix, unreadable header, too large to be decoded whole.
    """
    if ref.suffix in TIFF_SUFFIXES:
        return GdalRaster(ref)
    if ref.suffix in WHOLE_SUFFIXES:
        return WholeRaster(ref)
    allowed = ", ".join((*TIFF_SUFFIXES, *WHOLE_SUFFIXES))
    raise DataError(f"{ref}: image format {ref.suffix!r} is not read here. Formats: {allowed}")

"""Opens images by their suffix."""

from d2ls.errors import DataError
from sharding.files import FileRef
from sharding.raster.base import Raster, Reading
from sharding.raster.gdal import GDAL_SUFFIXES, GdalRaster
from sharding.raster.whole import WHOLE_SUFFIXES, WholeRaster

IMAGE_SUFFIXES = (*GDAL_SUFFIXES, *WHOLE_SUFFIXES)
PLAIN = Reading()


def open_raster(ref: FileRef, reading: Reading = PLAIN) -> Raster:
    """Opens an image by its suffix; only the header is read.

    Args:
        ref: the file.
        reading: settings that the file does not state.

    Raises:
        DataError: unknown suffix, unreadable header, several pages, too large to be decoded whole.
    """
    if ref.suffix in GDAL_SUFFIXES:
        return GdalRaster(ref, reading)
    if ref.suffix in WHOLE_SUFFIXES:
        return WholeRaster(ref, reading)
    raise DataError(
        f"{ref}: image format {ref.suffix!r} is not read here. Formats: {', '.join(IMAGE_SUFFIXES)}"
    )

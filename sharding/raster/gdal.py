"""TIFF through GDAL, by window: a scene of any size needs little memory."""

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.errors
import rasterio.windows

from d2ls.errors import DataError
from sharding.files import FileRef
from sharding.raster.base import Pixels, Raster, RasterInfo
from sharding.tiling import Window

TIFF_SUFFIXES = (".tif", ".tiff")
GDAL_CACHE_BYTES = 256 * 2**20


class GdalRaster(Raster):
    """TIFF through GDAL, by window."""

    def __init__(self, ref: FileRef) -> None:
        self._env = rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES)
        self._env.__enter__()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                self._file = rasterio.open(ref.gdal)
        except rasterio.errors.RasterioError as error:
            self._env.__exit__(None, None, None)
            raise DataError(f"{ref}: not a readable TIFF: {error}") from error
        self._table = color_table(self._file)
        super().__init__(ref, self._info())

    def _info(self) -> RasterInfo:
        file = self._file
        crs = None
        if file.crs:
            code = file.crs.to_epsg()
            crs = f"EPSG:{code}" if code else str(file.crs.to_wkt())
        georeferenced = bool(crs) or not file.transform.is_identity
        transform = tuple(float(value) for value in tuple(file.transform)[:6]) if georeferenced else None
        bands = 3 if self._table is not None else file.count
        return RasterInfo(
            file.height, file.width, bands, str(file.dtypes[0]), self._table is not None, crs, transform
        )

    def pixels(self, window: Window | None = None) -> Pixels:
        if self._table is not None:
            return np.asarray(self._table[self.indices(window)], np.uint8)
        return np.ascontiguousarray(self._read(None, window).transpose(1, 2, 0))

    def indices(self, window: Window | None = None) -> Pixels:
        if self._file.count != 1:
            raise DataError(f"{self.ref}: label ids need one band, this file has {self._file.count}")
        return self._read(1, window)

    def _read(self, band: int | None, window: Window | None) -> Any:
        area = (
            rasterio.windows.Window(window.column, window.row, window.width, window.height)
            if window
            else None
        )
        try:
            return self._file.read(band, window=area)
        except rasterio.errors.RasterioError as error:
            raise DataError(f"{self.ref}: damaged TIFF at {window or 'the whole image'}: {error}") from error

    def close(self) -> None:
        self._file.close()
        self._env.__exit__(None, None, None)


def color_table(file: Any) -> npt.NDArray[np.uint8] | None:
    """Colours (256 3) of a palette TIFF, None for another."""
    if file.count != 1 or file.colorinterp[0].name != "palette":
        return None
    table = np.zeros((256, 3), np.uint8)
    for index, color in file.colormap(1).items():
        table[index] = color[:3]
    return table

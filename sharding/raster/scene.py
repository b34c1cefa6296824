"""A scene to be mapped: pixels by window, which of them hold data, and where on Earth it lies."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.errors
import rasterio.windows
from pyarrow import fs
from rasterio.enums import Resampling

from d2ls import storage
from d2ls.errors import DataError
from sharding.files import FileRef
from sharding.raster.base import Raster
from sharding.raster.gdal import GDAL_CACHE_BYTES, TIFF_SUFFIXES, color_table
from sharding.raster.reader import open_raster
from sharding.raster.whole import WHOLE_SUFFIXES

IMAGE_SUFFIXES = (*TIFF_SUFFIXES, *WHOLE_SUFFIXES)
METRES_PER_DEGREE = 111_320.0

Mask = npt.NDArray[np.bool_]
Span = tuple[int, int]


@dataclass(frozen=True)
class Georeference:
    """Where a raster lies.

    Attributes:
        crs: as rasterio gives it; None where the file names none.
        transform: rasterio's Affine from column and row to x and y; the identity where there is none.
    """

    crs: Any
    transform: Any

    def pixel_metres(self, height: int, width: int) -> float | None:
        """Side of a pixel in metres, from the area that the middle pixel covers; None where it cannot be known."""
        if not self.crs or self.transform.is_identity:
            return None
        side = math.sqrt(abs(self.transform.determinant))
        if self.crs.is_geographic:
            latitude = self.transform.d * width / 2 + self.transform.e * height / 2 + self.transform.f
            return side * METRES_PER_DEGREE * math.sqrt(max(math.cos(math.radians(latitude)), 1e-6))
        return side * float(self.crs.linear_units_factor[1])


class Scene(ABC):
    """An open scene; all bands have one size and type.

    Attributes:
        name: its file, for messages.
        height: rows in pixels.
        width: columns.
        count: bands of the file, an alpha channel among them.
        alpha: position of the alpha channel, from 0; None where there is none.
        dtype: name of the pixel type.
        band_names: name of each band in lower case, empty where the file does not say.
        georeference: where it lies.
    """

    name: str
    height: int
    width: int
    count: int
    alpha: int | None
    dtype: str
    band_names: tuple[str, ...]
    georeference: Georeference

    @abstractmethod
    def read(
        self, rows: Span, columns: Span, bands: Sequence[int], grid: tuple[int, int] | None = None
    ) -> tuple[npt.NDArray[Any], Mask | None]:
        """Reads a window.

        Args:
            rows: first and one-past-last row, on the grid of the result.
            columns: likewise.
            bands: positions of the wanted bands, from 0.
            grid: rows and columns of a raster that covers the same ground, to resample to; None: the scene's own.

        Returns:
            Pixels (h w bands), and where the wanted bands hold data (h w; None: everywhere).

        Raises:
            DataError: damaged or vanished.
        """

    @abstractmethod
    def close(self) -> None:
        """Lets go of the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pixel_metres(self) -> float | None:
        """Ground sampling distance, None where unknown."""
        return self.georeference.pixel_metres(self.height, self.width)


def open_scene(path: Path | str) -> Scene:
    """Opens a scene by its suffix.

    Args:
        path: local file, or URI of a TIFF in an object store, which is read by windows where it lies.

    Raises:
        DataError: missing, unreadable, without pixels, or of an unknown format or pixel type.
    """
    entry = storage.info(path)
    if entry.type != fs.FileType.File:
        raise DataError(f"{path}: no such file")
    if entry.size == 0:
        raise DataError(f"{path}: the file is empty")
    suffix = Path(path).suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        raise DataError(f"{path}: format {suffix!r} is not read here. Formats: {', '.join(IMAGE_SUFFIXES)}")
    scene: Scene = TiffScene(path) if suffix in TIFF_SUFFIXES else WholeScene(storage.local_path(path))
    if scene.dtype not in ("uint8", "uint16"):
        scene.close()
        raise DataError(f"{path}: pixels are {scene.dtype}; 8 and 16 bit unsigned integers are read here")
    return scene


class TiffScene(Scene):
    """A TIFF or GeoTIFF, read by window through GDAL."""

    def __init__(self, path: Path | str) -> None:
        self.name = str(path)
        remote = {} if storage.is_local(path) else {"opener": storage.open_input}
        file = storage.local_path(path) if not remote else path
        self._env = rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES, GDAL_DISABLE_READDIR_ON_OPEN="TRUE")
        self._env.__enter__()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                self._file = rasterio.open(file, **remote)
        except rasterio.errors.RasterioError as error:
            self._env.__exit__(None, None, None)
            raise DataError(f"{path}: not a readable TIFF: {error}") from error
        file = self._file
        self._table = color_table(file)
        meanings = [meaning.name for meaning in file.colorinterp]
        self.alpha = meanings.index("alpha") if "alpha" in meanings else None
        self._masked = self.alpha is not None or any(nodata is not None for nodata in file.nodatavals)
        self._masked |= any("per_dataset" in [flag.name for flag in flags] for flags in file.mask_flag_enums)
        self.height, self.width, self.dtype = file.height, file.width, str(file.dtypes[0])
        self.count = file.count if self._table is None else 3
        names = tuple(self._band_name(i) for i in range(file.count))
        self.band_names = names if self._table is None else ("red", "green", "blue")
        self.georeference = Georeference(file.crs, file.transform)

    def _band_name(self, index: int) -> str:
        described = self._file.descriptions[index]
        meaning = self._file.colorinterp[index].name
        return (described or ("" if meaning in ("undefined", "gray") else meaning)).lower()

    def read(
        self, rows: Span, columns: Span, bands: Sequence[int], grid: tuple[int, int] | None = None
    ) -> tuple[npt.NDArray[Any], Mask | None]:
        """See `Scene.read`."""
        palette = self._table
        wanted = [1] if palette is not None else [band + 1 for band in bands]
        shape = (rows[1] - rows[0], columns[1] - columns[0])
        down, across = (1.0, 1.0) if grid is None else (self.height / grid[0], self.width / grid[1])
        area = rasterio.windows.Window(
            columns[0] * across, rows[0] * down, shape[1] * across, shape[0] * down
        )
        how = {} if grid is None or palette is not None else {"resampling": Resampling.bilinear}
        try:
            pixels = self._file.read(wanted, window=area, out_shape=(len(wanted), *shape), **how)
            valid = self._valid(wanted, area, shape) if self._masked else None
        except rasterio.errors.RasterioError as error:
            where = f"rows {rows[0]} to {rows[1]}, columns {columns[0]} to {columns[1]}"
            cause = error.__cause__ or error
            raise DataError(f"{self.name}: cannot be read at {where}: {cause}") from error
        if palette is not None:
            return palette[pixels[0]][..., list(bands)], valid
        return np.ascontiguousarray(pixels.transpose(1, 2, 0)), valid

    def _valid(self, wanted: list[int], area: Any, shape: tuple[int, int]) -> Mask:
        """A pixel holds data where any wanted band does and the alpha channel, unless wanted itself, is not zero."""
        masks = self._file.read_masks(wanted, window=area, out_shape=(len(wanted), *shape))
        valid: Mask = masks.any(0)
        if self.alpha is not None and self.alpha + 1 not in wanted:
            valid &= self._file.read(self.alpha + 1, window=area, out_shape=shape) > 0
        return valid

    def close(self) -> None:
        """See `Scene.close`."""
        self._file.close()
        self._env.__exit__(None, None, None)


class WholeScene(Scene):
    """A format that is decoded whole (PNG, JPEG, WebP, BMP), by the same decoder as in training."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._raster: Raster = open_raster(FileRef(str(path)))
        info = self._raster.info
        self.height, self.width, self.dtype = info.height, info.width, info.dtype
        self.count = info.bands
        self.alpha = 3 if info.bands == 4 else None
        colors = ("red", "green", "blue", "alpha")[: info.bands]
        self.band_names = colors if info.bands >= 3 else ("",) * info.bands
        self.georeference = Georeference(None, rasterio.Affine.identity())

    def read(
        self, rows: Span, columns: Span, bands: Sequence[int], grid: tuple[int, int] | None = None
    ) -> tuple[npt.NDArray[Any], Mask | None]:
        """See `Scene.read`."""
        whole: npt.NDArray[Any] = self._raster.pixels()
        if grid is not None:
            whole = cv2.resize(whole, grid[::-1], interpolation=cv2.INTER_AREA).reshape(*grid, -1)
        pixels = whole[slice(*rows), slice(*columns)]
        hidden = self.alpha is not None and self.alpha not in bands
        valid = pixels[..., self.alpha] > 0 if hidden else None
        return np.ascontiguousarray(pixels[..., list(bands)]), valid

    def close(self) -> None:
        """See `Scene.close`."""
        self._raster.close()

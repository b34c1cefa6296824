"""A scene to map: its pixels by window, which of them hold data, and its georeference."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy.typing as npt
from pyarrow import fs

from d2ls import storage
from d2ls.errors import DataError
from d2ls.window import Window
from sharding.files import FileRef
from sharding.raster.base import FLOAT_TYPES, INTEGER_TYPES, Georeference, Mask, RasterInfo, Reading
from sharding.raster.reader import IMAGE_SUFFIXES, PLAIN, open_raster

__all__ = ["IMAGE_SUFFIXES", "Georeference", "Mask", "Scene", "Span", "open_scene"]

Span = tuple[int, int]


class Scene:
    """An open scene, read by the rule of training (`Raster.read`).

    Args:
        path: the file, see `open_scene`.
        reading: what is known beyond what the file says.

    Attributes:
        name: its file, for messages.
        info: its header.
        height: rows in pixels.
        width: columns.
        count: bands of the file, an alpha channel among them.
        alpha: position of the alpha channel, from 0; None where there is none.
        dtype: type of the pixels that `read` returns: uint8, uint16 or float32.
        band_names: name of each band in lower case, empty if the file names none.
        georeference: where it lies.
        scaling: see `Raster.scaling`.
    """

    def __init__(self, path: Path | str, reading: Reading = PLAIN) -> None:
        self.name = str(path)
        place = storage.local_path(path) if storage.is_local(path) else path
        self._raster = open_raster(FileRef(str(place)), reading)
        info = self.info = self._raster.info
        self.height, self.width, self.count, self.alpha = info.height, info.width, info.bands, info.alpha
        self.dtype = info.read_as
        self.band_names = tuple(description or meaning for description, meaning in info.names)
        self.georeference, self.scaling = self._raster.georeference, self._raster.scaling

    info: RasterInfo

    def read(
        self, rows: Span, columns: Span, bands: Sequence[int], grid: tuple[int, int] | None = None
    ) -> tuple[npt.NDArray[Any], Mask | None]:
        """Reads a window.

        Args:
            rows: first and one-past-last row, on the grid of the result.
            columns: likewise.
            bands: positions of the bands to read, from 0.
            grid: rows and columns of a raster that covers the same ground, to resample to; None: the scene's own.

        Returns:
            Pixels (h w bands), and where these bands hold data (h w; None: everywhere).

        Raises:
            DataError: damaged, or deleted meanwhile.
        """
        area = Window(rows[0], columns[0], rows[1] - rows[0], columns[1] - columns[0])
        return self._raster.read(area, bands, grid)

    def close(self) -> None:
        """Closes the file."""
        self._raster.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pixel_metres(self) -> float | None:
        """Ground sampling distance, None if unknown."""
        return self.georeference.pixel_metres(self.height, self.width)


def open_scene(path: Path | str, reading: Reading = PLAIN) -> Scene:
    """Opens a scene by its suffix.

    Args:
        path: local file, or URI of a TIFF in an object store, which is read in place, by window.
        reading: what is known beyond what the file says.

    Raises:
        DataError: missing, unreadable, without pixels, or of an unknown format or pixel type.
    """
    entry = storage.info(path)
    if entry.type != fs.FileType.File:
        raise DataError(f"{path}: no such file")
    if entry.size == 0:
        raise DataError(f"{path}: the file is empty")
    scene = Scene(path, reading)
    if not scene.dtype:
        scene.close()
        types = ", ".join((*INTEGER_TYPES, *FLOAT_TYPES))
        raise DataError(
            f"{path}: pixels are {scene.info.dtype}, which is not supported. Types: {types}. Convert it, "
            "for instance with gdal_translate -ot Float32"
        )
    return scene

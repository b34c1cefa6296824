"""TIFF, VRT, Imagine and JPEG 2000 through GDAL, by window: a scene of any size needs little memory."""

import struct
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.errors
import rasterio.windows
from rasterio.enums import Resampling

from d2ls import storage
from d2ls.errors import DataError
from d2ls.window import Window
from sharding.files import FileRef
from sharding.raster.base import (
    Georeference,
    Mask,
    Pixels,
    Raster,
    RasterInfo,
    Reading,
    described,
    unmixed,
    with_data,
)
from sharding.raster.world_files import check_world, files_beside

TIFF_SUFFIXES = (".tif", ".tiff")
GDAL_SUFFIXES = (*TIFF_SUFFIXES, ".vrt", ".img", ".jp2")
GDAL_CACHE_BYTES = 256 * 2**20


class GdalRaster(Raster):
    """A file that GDAL reads by window."""

    def __init__(self, ref: FileRef, reading: Reading) -> None:
        self._env = rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE_BYTES, GDAL_DISABLE_READDIR_ON_OPEN="TRUE")
        self._env.__enter__()
        try:
            self._file = _opened(ref, reading.page)
            self._table = color_table(self._file)
            flags = [{flag.name for flag in flags} for flags in self._file.mask_flag_enums]
            self._masked = any("all_valid" not in names for names in flags)
            self._has_mask = "per_dataset" in flags[0] and "alpha" not in flags[0]
            georeference = Georeference.of(self._file)
            super().__init__(ref, self._info(georeference), georeference, reading)
            scaling = tuple(zip(self._file.scales, self._file.offsets, strict=True))
            self.scaling = scaling if set(scaling) != {(1.0, 0.0)} else ()
            if not georeference.placed and not georeference.gcps and storage.is_local(ref.path):
                for file in files_beside(ref):
                    check_world(file)
        except rasterio.errors.RasterioError as error:
            self._env.__exit__(None, None, None)
            raise DataError(
                f"{ref}: not a readable {_kind(ref)}: {str(error).rstrip('.')}. Copy or download it again"
            ) from error
        except DataError:
            self._env.__exit__(None, None, None)
            raise

    def _info(self, georeference: Georeference) -> RasterInfo:
        file = self._file
        meanings = [meaning.name.lower() for meaning in file.colorinterp]
        names = tuple(
            ((description or "").lower(), "" if meaning in ("undefined", "gray") else meaning)
            for description, meaning in zip(file.descriptions, meanings, strict=True)
        )
        palette = self._table is not None
        return RasterInfo(
            height=file.height,
            width=file.width,
            bands=3 if palette else file.count,
            dtype="uint8" if palette else np.result_type(*file.dtypes).name,
            palette=palette,
            names=(("", "red"), ("", "green"), ("", "blue")) if palette else names,
            alpha=meanings.index("alpha") if "alpha" in meanings else None,
            sidecars=tuple(_stamp(Path(name)) for name in file.files[1:] if not name.startswith("/vsi")),
            **described(georeference),
        )

    def read(
        self,
        window: Window | None = None,
        bands: Sequence[int] | None = None,
        grid: tuple[int, int] | None = None,
    ) -> tuple[Pixels, Mask | None]:
        """See `Raster.read`."""
        positions = list(range(self.info.bands) if bands is None else bands)
        numbers = [1] if self._table is not None else [band + 1 for band in positions]
        options = self._area(window, grid)
        smooth = {"resampling": Resampling.bilinear} if grid and self._table is None else {}
        with _located_errors(self.ref, window):
            raw = self._values(numbers, **options, **smooth)
            masks = self._file.read_masks(numbers, **options) > 0 if self._masked else None
            opaque = None
            if self.info.alpha is not None and self.info.alpha not in positions:
                opaque = self._file.read(self.info.alpha + 1, **options) > 0
            nodata = self.reading.nodata
            nearest = self._values(numbers, **options) if smooth and nodata is not None else None
        pixels = np.ascontiguousarray(raw.transpose(1, 2, 0))
        if nearest is not None and nodata is not None and grid is not None:
            factor = max(grid[0] / self.info.height, grid[1] / self.info.width)
            pixels = unmixed(pixels, nearest.transpose(1, 2, 0), nodata, factor)
        if self._table is not None:
            pixels = self._table[raw[0]][..., positions]
        return with_data(
            pixels, None if masks is None else masks.transpose(1, 2, 0), opaque, self.reading.nodata
        )

    def _area(self, window: Window | None, grid: tuple[int, int] | None) -> dict[str, Any]:
        """Returns arguments of rasterio's `read` for a window of a grid."""
        if window is None and grid is None:
            return {}
        rows, columns = grid or (self.info.height, self.info.width)
        area = window or Window(0, 0, rows, columns)
        down, across = self.info.height / rows, self.info.width / columns
        place = rasterio.windows.Window(
            area.column * across, area.row * down, area.width * across, area.height * down
        )
        return (
            {"window": place} if grid is None else {"window": place, "out_shape": (area.height, area.width)}
        )

    def pixels(self, window: Window | None = None) -> Pixels:
        """See `Raster.pixels`."""
        if self._table is not None:
            return np.asarray(self._table[self.indices(window)], np.uint8)
        with _located_errors(self.ref, window):
            numbers = [band + 1 for band in range(self.info.bands)]
            return np.ascontiguousarray(self._values(numbers, **self._area(window, None)).transpose(1, 2, 0))

    def indices(self, window: Window | None = None) -> Pixels:
        """See `Raster.indices`."""
        if self._file.count != 1:
            raise DataError(f"{self.ref}: label ids need one band, this file has {self._file.count}")
        with _located_errors(self.ref, window):
            return np.asarray(self._file.read(1, **self._area(window, None)))

    def mask(self, window: Window | None = None) -> Mask | None:
        """See `Raster.mask`."""
        if not self._has_mask:
            return None
        with _located_errors(self.ref, window):
            return np.asarray(self._file.read_masks(1, **self._area(window, None)) > 0)

    def _values(self, numbers: list[int], **options: Any) -> npt.NDArray[Any]:
        """Reads bands (bands h w) as `RasterInfo.dtype`; a VRT may hold bands of several types."""
        if len(set(self._file.dtypes)) == 1:
            return np.asarray(self._file.read(numbers, **options))
        return np.stack([self._file.read(number, **options) for number in numbers]).astype(self.info.dtype)

    def close(self) -> None:
        """See `Raster.close`."""
        self._file.close()
        self._env.__exit__(None, None, None)


class _located_errors:  # noqa: N801  (a context manager, called like a function)
    """Adds the file and the window to an error of reading."""

    def __init__(self, ref: FileRef, window: Window | None) -> None:
        self._ref, self._window = ref, window

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, rasterio.errors.RasterioError):
            area = self._window
            where = (
                "the file"
                if area is None
                else f"rows {area.row} to {area.row + area.height}, columns {area.column} to {area.column + area.width}"
            )
            cause = str(error.__cause__ or error).rstrip(".")
            raise DataError(
                f"{self._ref}: damaged {_kind(self._ref)}, cannot be read at {where}: {cause}. Copy or download it "
                "again"
            ) from error


def _opened(ref: FileRef, page: int | None) -> Any:
    """Opens the file, or one page of it.

    Raises:
        DataError: several pages and none chosen, no such page, CMYK, or a TIFF stored in another orientation.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        remote = {} if storage.is_local(ref.path) else {"opener": storage.open_input}
        file = rasterio.open(ref.gdal, **remote)
        pages = file.subdatasets if file.driver == "GTiff" else []
        if page is not None and page > max(len(pages), 1):
            file.close()
            raise DataError(f"{ref}: page {page} was asked for, the file has {max(len(pages), 1)}")
        if len(pages) > 1:
            file.close()
            if page is None:
                raise DataError(
                    f"{ref}: {len(pages)} pages in one TIFF. Name the page that holds the image: data.custom.page: 1 "
                    "in a recipe (not for label images), --page 1 for a map. Or save it as a file of its own"
                )
            file = rasterio.open(f"GTIFF_DIR:{page}:{ref.gdal}")
    if file.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE") == "CMYK":
        file.close()
        raise DataError(
            f"{ref}: colours are stored as CMYK, which has no unique conversion to RGB; save it as RGB"
        )
    if ref.suffix in TIFF_SUFFIXES and (orientation := tiff_orientation(ref)) != 1:
        file.close()
        raise DataError(
            f"{ref}: the TIFF is stored turned or mirrored (orientation {orientation}), which viewers undo and GDAL "
            "does not. Save it upright"
        )
    return file


def tiff_orientation(ref: FileRef) -> int:
    """Returns the orientation tag of the first image of a TIFF, 1 (upright) where there is none or it is unreadable."""
    try:
        with ref.stream() if storage.is_local(ref.path) else storage.open_input(ref.path) as stream:
            head = stream.read(16)
            order = {b"II": "<", b"MM": ">"}[head[:2]]
            big = struct.unpack_from(f"{order}H", head, 2)[0] == 43
            start = struct.unpack_from(f"{order}Q" if big else f"{order}I", head, 8 if big else 4)[0]
            stream.seek(start)
            size, step = (8, 20) if big else (2, 12)
            (count,) = struct.unpack(f"{order}Q" if big else f"{order}H", stream.read(size))
            entries = stream.read(min(count, 4096) * step)
        for at in range(0, len(entries) - step + 1, step):
            if struct.unpack_from(f"{order}H", entries, at)[0] == 274:
                value = struct.unpack_from(f"{order}H", entries, at + step - (8 if big else 4))[0]
                return int(value) if 1 <= value <= 8 else 1
    except (KeyError, OSError, struct.error):
        pass
    return 1


def color_table(file: Any) -> npt.NDArray[np.uint8] | None:
    """Returns the colours (256 or 65536, 3) of a palette TIFF, None for any other file."""
    if file.count != 1 or file.colorinterp[0].name != "palette":
        return None
    colors = file.colormap(1)
    table = np.zeros((max(256, *colors, np.iinfo(file.dtypes[0]).max + 1), 3), np.uint8)
    for index, color in colors.items():
        table[index] = color[:3]
    return table


def _kind(ref: FileRef) -> str:
    return {".vrt": "VRT", ".img": "Imagine file", ".jp2": "JPEG 2000"}.get(ref.suffix, "TIFF")


def _stamp(file: Path) -> str:
    try:
        status = file.stat()
    except OSError:
        return "missing"
    return f"{status.st_size}-{status.st_mtime_ns}"

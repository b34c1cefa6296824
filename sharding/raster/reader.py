"""Reading images and label images: PNG, JPEG, WebP, BMP and (Geo)TIFF, by window where the format allows it.

TIFF is read by windows through GDAL, so a scene of any size needs little memory. The other formats are decoded whole
once a scene and refused above `MAX_WHOLE_PIXELS`.
"""

import io
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Self, cast

import cv2
import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.errors
import rasterio.windows
from PIL import Image, UnidentifiedImageError

from d2ls.errors import DataError
from sharding.files import FileRef
from sharding.tiling import Window

MAX_WHOLE_PIXELS = 2**28
"""Pixels of an image that can only be decoded whole; more is taken for a decompression bomb."""

TIFF_SUFFIXES = (".tif", ".tiff")
WHOLE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
ORIENTATION = 0x0112
"""EXIF tag that tells viewers to turn a photograph; pixels and labels are taken as stored."""

GDAL_CACHE_BYTES = 256 * 2**20

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


@dataclass(frozen=True)
class RasterInfo:
    """What the header of an image says.

    Attributes:
        height: rows.
        width: columns.
        bands: channels after a palette is resolved (a palette image has 3).
        dtype: `uint8`, `uint16` or another name numpy knows.
        palette: pixels are stored as indices into a colour table.
        crs: EPSG code (`EPSG:26914`) or WKT; None where the image is not georeferenced.
        transform: six affine numbers, column and row to x and y; None likewise.
    """

    height: int
    width: int
    bands: int
    dtype: str
    palette: bool = False
    crs: str | None = None
    transform: tuple[float, ...] | None = None


class Raster(ABC):
    """An open image file."""

    def __init__(self, ref: FileRef, info: RasterInfo) -> None:
        self.ref = ref
        self.info = info

    @abstractmethod
    def pixels(self, window: Window | None = None) -> Pixels:
        """Reads H W C values, channels in file order (RGB where the file is RGB); palettes are resolved.

        Raises:
            DataError: the file is damaged.
        """

    @abstractmethod
    def indices(self, window: Window | None = None) -> Pixels:
        """Reads H W values of a single-band image; of a palette image the indices.

        Raises:
            DataError: the file is damaged or has several bands.
        """

    def labels(self, window: Window | None, *, colors: bool) -> Pixels:
        """Reads a label image: H W 3 colours, or H W ids.

        Raises:
            DataError: the file has other bands than its kind of label needs.
        """
        if not colors:
            return self.indices(window)
        raw = self.pixels(window)
        if raw.shape[2] == 4 and (raw[..., 3] == 255).all():
            raw = raw[..., :3]
        if raw.shape[2] != 3 or raw.dtype != np.uint8:
            raise DataError(
                f"{self.ref}: label colours need an 8-bit RGB or palette image, "
                f"this one has {raw.shape[2]} band(s) of {raw.dtype}"
            )
        return raw

    @abstractmethod
    def close(self) -> None:
        """Lets go of the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_raster(ref: FileRef) -> Raster:
    """Opens an image by its suffix; only the header is read.

    Raises:
        DataError: unknown suffix, unreadable header, too large to be decoded whole.
    """
    if ref.suffix in TIFF_SUFFIXES:
        return _Tiff(ref)
    if ref.suffix in WHOLE_SUFFIXES:
        return WholeRaster(ref)
    allowed = ", ".join((*TIFF_SUFFIXES, *WHOLE_SUFFIXES))
    raise DataError(f"{ref}: image format {ref.suffix!r} is not read here. Formats: {allowed}")


class _Tiff(Raster):
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
        self._table = _color_table(self._file)
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


class WholeRaster(Raster):
    """Formats that are decoded whole; the pixels are kept until the file is closed."""

    def __init__(self, ref: FileRef) -> None:
        super().__init__(ref, _header(ref))
        self._bytes = b""
        if self.info.height * self.info.width > MAX_WHOLE_PIXELS:
            raise DataError(
                f"{ref}: {self.info.height}x{self.info.width} pixels is too much to decode whole. "
                "Convert it to a tiled TIFF, which is read by windows."
            )
        self._pixels: Pixels | None = None
        self._indices: Pixels | None = None

    @property
    def encoded(self) -> bytes:
        """The file's bytes as they are; read when first asked for."""
        if not self._bytes:
            self._bytes = self.ref.read()
        return self._bytes

    def pixels(self, window: Window | None = None) -> Pixels:
        """See `Raster.pixels`."""
        if self._pixels is None:
            self._pixels = self._decode()
        return _cut(self._pixels, window)

    def indices(self, window: Window | None = None) -> Pixels:
        """See `Raster.indices`."""
        if self._indices is None:
            if self.info.bands != 1 and not self.info.palette:
                raise DataError(f"{self.ref}: label ids need one band, this file has {self.info.bands}")
            self._indices = self._decode_indices()
        return _cut(self._indices, window)

    def plain_as(self, codec: str) -> bool:
        """Says whether the file's own bytes can stand in a shard as `png` or `jpg`: any reader gets these pixels."""
        content = self.encoded
        if codec == "png" and self.ref.suffix == ".png":
            return not self.info.palette and content.find(b"tRNS", 0, content.find(b"IDAT")) < 0
        if codec == "jpg" and self.ref.suffix in (".jpg", ".jpeg"):
            with Image.open(io.BytesIO(content)) as image:
                return image.getexif().get(ORIENTATION, 1) == 1  # readers differ in turning such images
        return False

    def _decode(self) -> Pixels:
        decoded = cv2.imdecode(np.frombuffer(self.encoded, np.uint8), cv2.IMREAD_UNCHANGED)
        if decoded is None:
            raise DataError(f"{self.ref}: damaged image, it cannot be decoded")
        if decoded.ndim == 2:
            decoded = decoded[..., None]
        elif decoded.shape[2] == 3:
            decoded = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
        else:
            decoded = cv2.cvtColor(decoded, cv2.COLOR_BGRA2RGBA)
        return _typed(decoded[..., : self.info.bands])

    def _decode_indices(self) -> Pixels:
        depth = _png_depth(self.encoded)
        if not self.info.palette and depth not in (1, 2, 4):
            return _typed(self.pixels()[..., 0])
        try:
            with Image.open(io.BytesIO(self.encoded)) as image:
                values = np.asarray(image).astype(np.uint8)
                scaled = image.mode == "L"  # grey of 2 or 4 bits is spread over 0..255 by the decoder
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{self.ref}: damaged image, it cannot be decoded: {error}") from error
        return values // (255 // (2**depth - 1)) if scaled and depth else values

    def close(self) -> None:
        """Lets go of bytes and pixels."""
        self._bytes, self._pixels, self._indices = b"", None, None


def _header(ref: FileRef) -> RasterInfo:
    try:
        with warnings.catch_warnings(), ref.stream() as stream:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            start = stream.read(32)
            stream.seek(0)
            with Image.open(stream) as image:
                width, height = image.size
                mode = image.mode
    except Image.DecompressionBombError as error:
        raise DataError(f"{ref}: too large to decode whole ({error}). Convert it to a tiled TIFF.") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{ref}: not a readable image, whatever its suffix says") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{ref}: not a readable image: {error}") from error
    bands = {
        "1": 1,
        "L": 1,
        "I;16": 1,
        "I;16B": 1,
        "I": 1,
        "P": 3,
        "RGB": 3,
        "LA": 4,
        "PA": 4,
        "RGBA": 4,
    }.get(mode)
    if bands is None:
        raise DataError(f"{ref}: colour mode {mode} is not read here; save it as grey, RGB or RGBA")
    dtype = "uint16" if _png_depth(start) == 16 or mode.startswith("I") else "uint8"
    return RasterInfo(height, width, bands, dtype, palette=mode == "P")


def _png_depth(content: bytes) -> int:
    """Bits a sample of a PNG; 0 for other formats."""
    return content[24] if content[:8] == b"\x89PNG\r\n\x1a\n" and len(content) > 25 else 0


def _cut(pixels: Pixels, window: Window | None) -> Pixels:
    if window is None:
        return pixels
    return pixels[window.row : window.row + window.height, window.column : window.column + window.width]


def _color_table(file: Any) -> npt.NDArray[np.uint8] | None:
    """Colours (256 3) of a palette TIFF, None for another."""
    if file.count != 1 or file.colorinterp[0].name != "palette":
        return None
    table = np.zeros((256, 3), np.uint8)
    for index, color in file.colormap(1).items():
        table[index] = color[:3]
    return table


def _typed(pixels: npt.NDArray[Any]) -> Pixels:
    return cast(Pixels, np.ascontiguousarray(pixels))

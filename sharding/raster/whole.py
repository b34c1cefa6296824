"""PNG, JPEG, WebP and BMP: decoded whole once, refused above `MAX_WHOLE_PIXELS`."""

import io
import warnings
from typing import Any, cast

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from d2ls.errors import DataError
from sharding.files import FileRef
from sharding.raster.base import Pixels, Raster, RasterInfo
from sharding.tiling import Window

MAX_WHOLE_PIXELS = 2**28
"""Pixels of an image that can only be decoded whole; more is taken for a decompression bomb."""

WHOLE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
ORIENTATION = 0x0112
"""EXIF tag that tells viewers to turn a photograph; pixels and labels are taken as stored."""


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


def _typed(pixels: npt.NDArray[Any]) -> Pixels:
    return cast(Pixels, np.ascontiguousarray(pixels))

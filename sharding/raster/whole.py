"""PNG, JPEG, WebP and BMP: decoded whole once, refused above `MAX_WHOLE_PIXELS`."""

import io
import warnings
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.errors
from PIL import Image, UnidentifiedImageError

from d2ls.errors import DataError
from d2ls.window import Window
from sharding.files import FileRef
from sharding.raster.base import (
    NOWHERE,
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

MAX_WHOLE_PIXELS = 2**28
"""Pixels of an image that can only be decoded whole; more is refused as a decompression bomb."""

WHOLE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
ORIENTATION = 0x0112
"""EXIF tag that tells viewers to turn a photograph; pixels and labels are read as displayed."""


class WholeRaster(Raster):
    """Formats that are decoded whole; the pixels are kept until the file is closed."""

    def __init__(self, ref: FileRef, reading: Reading) -> None:
        georeference, sidecars = _beside(ref)
        super().__init__(ref, _header(ref, georeference, sidecars), georeference, reading)
        if self.info.orientation != 1 and self.info.transform:
            raise DataError(
                f"{ref}: EXIF turns this image (orientation {self.info.orientation}) and a world file places it as it "
                "is stored. Save it upright"
            )
        self._bytes = b""
        if self.info.height * self.info.width > MAX_WHOLE_PIXELS:
            raise DataError(
                f"{ref}: {self.info.height}x{self.info.width} pixels is too much to decode whole. "
                "Convert it to a tiled TIFF, which is read by windows."
            )
        self._pixels: Pixels | None = None
        self._opaque: Mask | None = None
        self._indices: Pixels | None = None

    @property
    def encoded(self) -> bytes:
        """The encoded bytes of the file, read on first use."""
        if not self._bytes:
            self._bytes = self.ref.read()
        return self._bytes

    def read(
        self,
        window: Window | None = None,
        bands: Sequence[int] | None = None,
        grid: tuple[int, int] | None = None,
    ) -> tuple[Pixels, Mask | None]:
        """See `Raster.read`."""
        whole = self.pixels()
        opaque = self._opaque
        if grid is not None:
            whole = self._resized(whole, grid)
            if opaque is not None:
                opaque = cv2.resize(opaque.astype(np.uint8), grid[::-1], interpolation=cv2.INTER_AREA) > 0
        pixels = _cut(whole, window)
        seen = None if opaque is None else _cut(opaque, window)
        if self.info.alpha is not None and bands is not None and self.info.alpha not in bands:
            seen = pixels[..., self.info.alpha] > 0
        if bands is not None and tuple(bands) != tuple(range(whole.shape[2])):
            pixels = np.ascontiguousarray(pixels[..., list(bands)])
        return with_data(pixels, None, seen, self.reading.nodata)

    def _resized(self, whole: Pixels, grid: tuple[int, int]) -> Pixels:
        smooth = cv2.resize(whole, grid[::-1], interpolation=cv2.INTER_AREA).reshape(*grid, -1)
        if self.reading.nodata is None:
            return smooth
        nearest = cv2.resize(whole, grid[::-1], interpolation=cv2.INTER_NEAREST_EXACT).reshape(*grid, -1)
        return unmixed(
            smooth, nearest, self.reading.nodata, max(grid[0] / len(whole), grid[1] / whole.shape[1])
        )

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
        """Returns whether the file can be copied into a shard as `png` or `jpg` and reads the same there."""
        if self.info.orientation != 1:  # not all readers apply the orientation
            return False
        content = self.encoded
        if codec == "png" and self.ref.suffix == ".png":
            return not self.info.palette and content.find(b"tRNS", 0, content.find(b"IDAT")) < 0
        return codec == "jpg" and self.ref.suffix in (".jpg", ".jpeg")

    def _decode(self) -> Pixels:
        decoded = cv2.imdecode(np.frombuffer(self.encoded, np.uint8), cv2.IMREAD_UNCHANGED)
        if decoded is None:
            raise DataError(f"{self.ref}: damaged image, it cannot be decoded. Copy or download it again")
        if decoded.ndim == 2:
            decoded = decoded[..., None]
        elif decoded.shape[2] == 3:
            decoded = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
        else:
            decoded = cv2.cvtColor(decoded, cv2.COLOR_BGRA2RGBA)
        if decoded.shape[2] > self.info.bands:  # a colour, or entries of a palette, marked as transparent
            self._opaque = turned(decoded[..., 3] > 0, self.info.orientation)
        return _typed(turned(decoded[..., : self.info.bands], self.info.orientation))

    def _decode_indices(self) -> Pixels:
        depth = _png_depth(self.encoded)
        if not self.info.palette and depth not in (1, 2, 4):
            return _typed(self.pixels()[..., 0])
        try:
            with Image.open(io.BytesIO(self.encoded)) as image:
                values = turned(np.asarray(image).astype(np.uint8), self.info.orientation)
                scaled = image.mode == "L"  # grey of 2 or 4 bits is spread over 0..255 by the decoder
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{self.ref}: damaged image, it cannot be decoded: {error}") from error
        return values // (255 // (2**depth - 1)) if scaled and depth else values

    def close(self) -> None:
        """Frees bytes and pixels."""
        self._bytes, self._pixels, self._indices, self._opaque = b"", None, None, None


def _header(ref: FileRef, georeference: Georeference, sidecars: tuple[str, ...]) -> RasterInfo:
    try:
        with warnings.catch_warnings(), ref.stream() as stream:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            start = stream.read(32)
            stream.seek(0)
            with Image.open(stream) as image:
                width, height = image.size
                mode = image.mode
                orientation = _orientation(image.info.get("exif"))
                frames = getattr(image, "n_frames", 1) if image.format in ("PNG", "WEBP") else 1
    except Image.DecompressionBombError as error:
        raise DataError(f"{ref}: too large to decode whole ({error}). Convert it to a tiled TIFF.") from error
    except UnidentifiedImageError as error:
        raise DataError(
            f"{ref}: not a readable image, whatever its suffix says. Copy or download it again"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{ref}: not a readable image: {error}. Copy or download it again") from error
    if frames > 1:
        raise DataError(
            f"{ref}: an animation of {frames} pictures. Save the one you mean as a file of its own"
        )
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
    colors = ("red", "green", "blue", "alpha")[:bands] if bands >= 3 else ("",)
    if orientation >= 5:
        height, width = width, height
    return RasterInfo(
        height=height,
        width=width,
        bands=bands,
        dtype=dtype,
        palette=mode == "P",
        names=tuple(("", name) for name in colors),
        alpha=3 if bands == 4 else None,
        orientation=orientation,
        sidecars=sidecars,
        **described(georeference),
    )


def _orientation(exif: bytes | None) -> int:
    """Returns the EXIF orientation of an image, 1 (upright) if there is none."""
    if not exif:
        return 1
    tags = Image.Exif()
    try:
        tags.load(exif)
        value = tags.get(ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, KeyError):
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def turned(stored: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Turns stored pixels (H W ...) the way viewers display them by the EXIF orientation."""
    if orientation in (5, 6, 7, 8):
        stored = stored.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        stored = stored[::-1]
    if orientation in (2, 3, 6, 7):
        stored = stored[:, ::-1]
    return stored


def _beside(ref: FileRef) -> tuple[Georeference, tuple[str, ...]]:
    """Returns the georeference from a world file or GDAL's .aux.xml beside the image, and the state of these files."""
    sidecars = files_beside(ref)
    if not sidecars:
        return NOWHERE, ()
    for file in sidecars:
        check_world(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(ref.gdal) as image:
                georeference = Georeference.of(image)
    except rasterio.errors.RasterioError as error:
        raise DataError(f"{ref}: not readable with {', '.join(map(str, sidecars))}: {error}") from error
    return georeference, tuple(file.stamp for file in sidecars)


def _png_depth(content: bytes) -> int:
    """Returns the bits per sample of a PNG; 0 for other formats."""
    return content[24] if content[:8] == b"\x89PNG\r\n\x1a\n" and len(content) > 25 else 0


def _cut(pixels: Any, window: Window | None) -> Any:
    if window is None:
        return pixels
    return pixels[window.row : window.row + window.height, window.column : window.column + window.width]


def _typed(pixels: npt.NDArray[Any]) -> Pixels:
    return np.ascontiguousarray(pixels)

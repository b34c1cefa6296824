"""Image codecs of shards, the encoding side; `d2ls.shards.codecs` is the decoding side.

PNG, lossless WebP, JPEG or tiled TIFF; labels are always PNG. `CodecConfig` in `pipeline.config.data` lists the names
that a recipe may use.
"""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import rasterio.errors
from isal import isal_zlib
from rasterio.io import MemoryFile

from d2ls.errors import ConfigError, ShardError

CodecName = Literal["png", "webp", "jpg", "tif"]
TIFF_BLOCK = 256
"""Side of a TIFF block. A crop decodes whole blocks."""

Image = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Codec:
    """How images are stored.

    With the default, a loader reads a crop five times as fast as from PNG or WebP. It takes two thirds more bytes
    than PNG; `compression="zstd"` is between the two. Measured by benchmarks/loader.py and benchmarks/shards.py.

    Attributes:
        name: `png`, `webp` (lossless), `jpg`, or `tif` (256-pixel blocks).
        quality: of `jpg`, 1..100.
        level: effort of `png` (0..9), `webp` (0..6) or of Zstd in `tif` (1..22); None takes a default of the codec.
        compression: of `tif`: `none` or `zstd`.
    """

    name: CodecName = "tif"
    quality: int = 95
    level: int | None = None
    compression: Literal["none", "zstd"] = "none"

    def __post_init__(self) -> None:
        if self.name not in _ENCODERS:
            raise ConfigError(f"data.codec.name: {self.name!r} is none of {', '.join(_ENCODERS)}")
        low, high = {"png": (0, 9), "webp": (0, 6), "jpg": (0, 0), "tif": (1, 22)}[self.name]
        if self.level is not None and not low <= self.level <= high:
            raise ConfigError(f"data.codec.level: {self.level} is outside {low}..{high} of {self.name}")
        if self.level is not None and self.name == "tif" and self.compression == "none":
            raise ConfigError(
                "data.codec.level: an uncompressed tif has none; add data.codec.compression=zstd"
            )

    @property
    def lossless(self) -> bool:
        """Whether decoding returns exactly the same pixels."""
        return self.name != "jpg"

    @property
    def ratio(self) -> float:
        """Approximate bytes stored per byte of pixels; used only to choose the number of samples per shard."""
        if self.name == "tif":
            return 1.0 if self.compression == "none" else 0.7
        return {"png": 0.6, "webp": 0.42, "jpg": 0.2}[self.name]

    def check(self, bands: int, dtype: str) -> None:
        """Refuses images that this codec cannot hold.

        Raises:
            ConfigError: names codecs that can.
        """
        fits = {
            "png": bands in (1, 3, 4) and dtype in ("uint8", "uint16"),
            "webp": bands == 3 and dtype == "uint8",
            "jpg": bands in (1, 3) and dtype == "uint8",
            "tif": dtype in ("uint8", "uint16", "float32"),
        }
        if not fits[self.name]:
            able = [name for name, fit in fits.items() if fit]
            raise ConfigError(
                f"data.codec.name: {self.name} cannot hold {bands} band(s) of {dtype}; "
                + (f"use {' or '.join(able)}" if able else "images must be uint8, uint16 or float32")
            )

    def encode(self, image: Image) -> bytes:
        """Encodes H W C pixels (uint8 or uint16)."""
        return _ENCODERS[self.name](self, image)

    def to_json(self) -> dict[str, Any]:
        """Returns the settings that matter for this codec."""
        settings: dict[str, Any] = {"name": self.name, "lossless": self.lossless}
        if self.name == "jpg":
            settings["quality"] = self.quality
        if self.name == "tif":
            settings |= {"compression": self.compression, "block": TIFF_BLOCK}
        return settings


def crc32(content: bytes) -> int:
    """Computes the checksum of a member, as in the index."""
    return isal_zlib.crc32(content)


_TO_BGR = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}


def _imencode(suffix: str, image: Image, settings: list[int]) -> bytes:
    bands = image.shape[2] if image.ndim == 3 else 1
    ordered = cv2.cvtColor(image, _TO_BGR[bands]) if bands in _TO_BGR else image
    done, encoded = cv2.imencode(suffix, ordered, settings)
    if not done:
        raise ShardError(f"an image of shape {image.shape} ({image.dtype}) cannot be encoded as {suffix}")
    return bytes(encoded.tobytes())


def _png(codec: Codec, image: Image) -> bytes:
    level = 3 if codec.level is None else codec.level
    return _imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, level])


def _jpg(codec: Codec, image: Image) -> bytes:
    return _imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, codec.quality])


def _webp(codec: Codec, image: Image) -> bytes:
    from PIL import Image as PillowImage

    stream = io.BytesIO()
    method = 0 if codec.level is None else codec.level
    PillowImage.fromarray(image).save(stream, "WEBP", lossless=True, method=method, quality=50, exact=True)
    return stream.getvalue()


def _tif(codec: Codec, image: Image) -> bytes:
    height, width, bands = image.shape
    profile: dict[str, Any] = {
        "tiled": True,
        "blockxsize": TIFF_BLOCK,
        "blockysize": TIFF_BLOCK,
        "interleave": "pixel",
    }
    if codec.compression == "zstd":
        profile |= {
            "compress": "ZSTD",
            "predictor": 2 if image.dtype.kind == "u" else 1,
            "zstd_level": 1 if codec.level is None else codec.level,
        }
    if bands == 3:
        profile["photometric"] = "RGB"
    shape = {"height": height, "width": width, "count": bands, "dtype": str(image.dtype)}
    with warnings.catch_warnings(), MemoryFile() as memory:
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with memory.open(driver="GTiff", **shape, **profile) as file:
            file.write(image.transpose(2, 0, 1))
        return bytes(memory.read())


_ENCODERS: dict[str, Callable[[Codec, Image], bytes]] = {"png": _png, "webp": _webp, "jpg": _jpg, "tif": _tif}

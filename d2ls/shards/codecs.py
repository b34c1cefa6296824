"""Decodes image and label members of a shard: the one decoder of training, sharding, previews and `--verify`."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from d2ls.errors import LabelError, ShardError
from d2ls.labels import IGNORE
from d2ls.shards.card import DatasetCard
from d2ls.shards.png import read_grey_png
from d2ls.shards.tiff import Read, open_tiff
from d2ls.window import Window

Expected = tuple[int, int, int, str]
"""Height, width, channels and dtype of an image, according to card and index."""

_TO_RGB = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}


@dataclass(frozen=True)
class PixelFormat:
    """What every sample of a set must look like.

    Attributes:
        channels: C, number of bands.
        dtype: `uint8`, `uint16` or `float32`, as stored.
        max_value: pixel value that represents 1.0.
        num_classes: K.
        scale: for `float32`, the values that represent 0.0 and 1.0 in each channel.
    """

    channels: int
    dtype: str
    max_value: float
    num_classes: int
    scale: tuple[tuple[float, float], ...] | None = None

    @classmethod
    def of(cls, card: DatasetCard) -> "PixelFormat":
        """Returns the format that a card describes."""
        return cls(len(card.bands), card.dtype, card.max_value, card.classes.num_classes, card.scale)

    @property
    def batch_dtype(self) -> np.dtype[Any]:
        """uint8, or float32 if 8 bits do not hold the values."""
        return np.dtype(np.uint8 if self.dtype == "uint8" else np.float32)

    def check_mask(self, mask: npt.NDArray[np.uint8]) -> None:
        """Checks the values of a label image (H W).

        Raises:
            LabelError: a label is neither a class nor 255.
        """
        if mask.size == 0 or int((mask + np.uint8(1)).max()) <= self.num_classes:  # 255 + 1 wraps to 0
            return
        values = np.unique(mask)
        unknown = values[(values >= self.num_classes) & (values != IGNORE)]
        row, column = np.argwhere(mask == unknown[0])[0]
        raise LabelError(
            f"label {unknown[0]} at row {row} column {column} is outside 0..{self.num_classes - 1} and not {IGNORE}"
        )


def read_image(
    read: Read, length: int, suffix: str, *, expected: Expected | None = None, window: Window | None = None
) -> npt.NDArray[Any]:
    """Decodes an image or a window of it. Of a TIFF only the blocks that the window touches are read.

    Args:
        read: reads bytes of the encoded image.
        length: length of the encoded image, in bytes.
        suffix: `tif`, `png`, `webp` or `jpg`.
        expected: what the image must be; None accepts any.
        window: part of the image to return; None returns all of it.

    Returns:
        h w C, uint8, uint16 or float32; RGB or RGBA if there are three or four channels.

    Raises:
        ShardError: it cannot be decoded, or is not what is expected.
    """
    if suffix == "tif":
        layout = open_tiff(read, length)
        if layout is None:
            raise ShardError("the image cannot be decoded: damaged, or not a tif as pipeline.shard writes it")
        _check((layout.height, layout.width, layout.channels, layout.dtype.name), expected)
        return layout.read_window(read, window or Window(0, 0, layout.height, layout.width))
    image = _decode(read(0, length), "image")
    image = image[:, :, None] if image.ndim == 2 else image
    _check((*image.shape, image.dtype.name), expected)
    if window is not None:
        image = image[window.slices]
    return cv2.cvtColor(image, _TO_RGB[image.shape[2]]) if image.shape[2] in _TO_RGB else image


def decode_image(
    content: bytes, suffix: str, *, expected: Expected | None = None, window: Window | None = None
) -> npt.NDArray[Any]:
    """Decodes an image in memory; see `read_image`."""
    return read_image(
        lambda offset, length: content[offset : offset + length],
        len(content),
        suffix,
        expected=expected,
        window=window,
    )


def decode_mask(content: bytes, size: tuple[int, int] | None = None) -> npt.NDArray[np.uint8]:
    """Decodes a label image: H W, uint8. Faster if the size (H, W) is given and `grey_png` wrote it.

    Raises:
        ShardError: it cannot be decoded, has more than 8 bits or one channel, or another size.
    """
    fast = read_grey_png(content, size) if size else None
    if fast is not None:
        return fast
    mask = _decode(content, "mask")
    if mask.ndim != 2 or mask.dtype != np.uint8 or (size and mask.shape != size):
        raise ShardError(f"the mask is {mask.shape} {mask.dtype.name}, the index says {size or 'H W'} uint8")
    return mask


def _check(actual: tuple[Any, ...], expected: Expected | None) -> None:
    if expected is not None and actual != expected:
        raise ShardError(f"the image is {actual}, card and index say {expected}")


def _decode(content: bytes, name: str) -> npt.NDArray[Any]:
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ShardError(f"the {name} cannot be decoded: {error}") from error
    if pixels is None:
        raise ShardError(f"the {name} cannot be decoded: damaged, or not an image")
    return np.asarray(pixels)

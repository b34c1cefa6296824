"""From the bytes of a sample to pixels, window by window where the file format allows it."""

import io
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from d2ls.errors import LabelError, ShardError
from d2ls.labels import IGNORE
from d2ls.loader.orders import Box
from d2ls.loader.reading import Member
from d2ls.loader.records import Record
from d2ls.loader.tiff import open_tiff
from d2ls.png import alone, open_png, shortened, unfiltered
from d2ls.shards import DatasetCard

_PROBE = 16  # rows of a PNG looked at to see which filters it uses
_WORTH = 0.6  # share of the rows above which a shortened PNG is no cheaper than the whole one


@dataclass(frozen=True)
class PixelFormat:
    """What every sample of a set must look like.

    Attributes:
        channels: C, number of bands.
        dtype: `uint8`, `uint16` or `float32`, as stored.
        max_value: value that stands for 1.0.
        num_classes: K.
        scale: of `float32`, values that stand for dark and bright in each channel.
    """

    channels: int
    dtype: str
    max_value: float
    num_classes: int
    scale: tuple[tuple[float, float], ...] | None = None

    @classmethod
    def of(cls, card: DatasetCard) -> "PixelFormat":
        """Takes the format from a card."""
        return cls(len(card.bands), card.dtype, card.max_value, card.classes.num_classes, card.scale)

    @property
    def batch_dtype(self) -> np.dtype[Any]:
        """uint8, or float32 where 8 bits do not hold the values."""
        return np.dtype(np.uint8 if self.dtype == "uint8" else np.float32)

    def check_image(self, image: npt.NDArray[Any], height: int, width: int) -> None:
        """Compares a decoded image (H W C) with the card and the index.

        Raises:
            ShardError: another size, number of channels or dtype.
        """
        if image.shape != (height, width, self.channels) or image.dtype.name != self.dtype:
            raise ShardError(
                f"the image is {image.shape} {image.dtype.name}, card and index say "
                f"{(height, width, self.channels)} {self.dtype}"
            )

    def check_mask(self, mask: npt.NDArray[np.uint8], height: int, width: int) -> None:
        """Compares a decoded label image (H W) with card and index.

        Raises:
            ShardError: another size or more than one channel.
            LabelError: a label is neither a class nor 255.
        """
        if mask.shape != (height, width) or mask.dtype != np.uint8:
            raise ShardError(
                f"the mask is {mask.shape} {mask.dtype.name}, the index says {(height, width)} uint8"
            )
        if mask.size == 0 or int((mask + np.uint8(1)).max()) <= self.num_classes:  # 255 + 1 wraps to 0
            return
        values = np.unique(mask)
        wrong = values[(values >= self.num_classes) & (values != IGNORE)]
        row, column = np.argwhere(mask == wrong[0])[0]
        raise LabelError(
            f"label {wrong[0]} at row {row} column {column} is outside 0..{self.num_classes - 1} and not {IGNORE}"
        )


def read_image(member: Member, layout: PixelFormat, box: Box) -> npt.NDArray[Any]:
    """Decodes a window of an image.

    TIFF is read tile by tile, PNG down to the last row of the window where that saves time; WebP and JPEG are
    decoded whole.

    Args:
        member: the encoded image.
        layout: what it must look like.
        box: window inside the image.

    Returns:
        h w C, uint8, uint16 or float32, C-contiguous or a view; red, green, blue where there are three or four bands.

    Raises:
        ShardError: it cannot be decoded, or is not what card and index say.
    """
    height, width = member.record.height, member.record.width
    top, left, box_height, box_width = box
    if member.record.image_suffix == "tif":
        tiff = open_tiff(member.part, member.length)
        if tiff is not None:
            expected = (height, width, layout.channels, layout.dtype)
            found = (tiff.height, tiff.width, tiff.channels, tiff.dtype.name)
            if found != expected:
                raise ShardError(f"the image is {found}, card and index say {expected}")
            return tiff.window(member.part, box)
    content, rows = member.content(), top + box_height
    if member.record.image_suffix == "png" and rows < height:
        image, ordered = _png_rows(content, layout, member.record, top, rows)
        if ordered:
            return image[:, left : left + box_width]
    else:
        image = _decode(content, member.name)
    image = image[:, :, None] if image.ndim == 2 else image
    layout.check_image(image, height if len(image) == height else rows, width)
    image = image[top:rows, left : left + box_width]
    if layout.channels in (3, 4):
        code = cv2.COLOR_BGR2RGB if layout.channels == 3 else cv2.COLOR_BGRA2RGBA
        image = cv2.cvtColor(image, code)
    return image


def read_mask(member: Member, layout: PixelFormat) -> npt.NDArray[np.uint8]:
    """Decodes a label image: H W, uint8, ids 0..K-1 or 255.

    Raises:
        ShardError: it cannot be decoded, or has another size than the index says.
        LabelError: a label is neither a class nor 255.
    """
    content = member.content()
    mask = _plain_grey(content, member.record)
    if mask is None:
        mask = _decode_palette(content) if content[25:26] == b"\3" else _decode(content, member.name)
    layout.check_mask(mask, member.record.height, member.record.width)
    return mask


def _png_rows(
    content: bytes, layout: PixelFormat, record: Record, top: int, rows: int
) -> tuple[npt.NDArray[Any], bool]:
    """Decodes the rows `top` to `rows` of a PNG, or more where less would not be cheaper.

    Returns:
        Those rows, red first, and True; or rows from 0 on (`rows` or all), bands as OpenCV has them, and False.
    """
    png = open_png(content)
    if png is None:
        return _decode(content, "image"), False
    found, expected = (png.height, png.width, png.channels), (record.height, record.width, layout.channels)
    if found != expected or layout.dtype != "uint8":
        raise ShardError(f"the image is {found} uint8, card and index say {expected} {layout.dtype}")
    if not alone(png.inflate(min(rows, _PROBE))) and rows > _WORTH * png.height:
        return _decode(content, "image"), False
    data = png.inflate(rows)
    pixels = unfiltered(png, data, top)
    return (pixels, True) if pixels is not None else (_decode(shortened(png, data), "image"), False)


def _decode(content: bytes, name: str) -> npt.NDArray[Any]:
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ShardError(f"the {name} cannot be decoded: {error}") from error
    if pixels is None:
        raise ShardError(f"the {name} cannot be decoded: damaged, or not an image")
    return np.asarray(pixels)


def _plain_grey(content: bytes, record: Record) -> npt.NDArray[np.uint8] | None:
    """Reads a grey PNG of the right size without row filters, as `sharding` writes labels; None for another file."""
    png = open_png(content)
    if png is None or (png.height, png.width, png.channels) != (record.height, record.width, 1):
        return None
    try:
        data = png.inflate(png.height)
    except ShardError as error:
        raise ShardError(f"the mask {error}") from error
    return None if data[:, 0].any() else data[:, 1:]


def _decode_palette(content: bytes) -> npt.NDArray[np.uint8]:
    """Reads the indices of a palette PNG, which OpenCV would turn into colours."""
    from PIL import Image

    try:
        return np.asarray(Image.open(io.BytesIO(content)), dtype=np.uint8)
    except (OSError, SyntaxError) as error:
        raise ShardError(f"the mask cannot be decoded: {error}") from error

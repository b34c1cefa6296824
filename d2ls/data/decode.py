"""What the samples of a set must look like, and their decoding into that."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from d2ls.data.orders import Box
from d2ls.data.reader import Member
from d2ls.errors import LabelError
from d2ls.labels import IGNORE
from d2ls.shards import DatasetCard, codecs


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

    def check_mask(self, mask: npt.NDArray[np.uint8]) -> None:
        """Checks the values of a label image (H W).

        Raises:
            LabelError: a label is neither a class nor 255.
        """
        if mask.size == 0 or int((mask + np.uint8(1)).max()) <= self.num_classes:  # 255 + 1 wraps to 0
            return
        values = np.unique(mask)
        wrong = values[(values >= self.num_classes) & (values != IGNORE)]
        row, column = np.argwhere(mask == wrong[0])[0]
        raise LabelError(
            f"label {wrong[0]} at row {row} column {column} is outside 0..{self.num_classes - 1} and not {IGNORE}"
        )


def read_image(member: Member, layout: PixelFormat, box: Box) -> npt.NDArray[Any]:
    """Decodes a window of an image; see `d2ls.shards.codecs.read_image`.

    Raises:
        ShardError: it cannot be decoded, or is not what card and index say.
    """
    record = member.record
    expected = (record.height, record.width, layout.channels, layout.dtype)
    return codecs.read_image(member.part, member.length, record.image_suffix, expected=expected, box=box)


def read_mask(member: Member, layout: PixelFormat) -> npt.NDArray[np.uint8]:
    """Decodes a label image: H W, uint8, ids 0..K-1 or 255.

    Raises:
        ShardError: it cannot be decoded, or has another size than the index says.
        LabelError: a label is neither a class nor 255.
    """
    mask = codecs.decode_mask(member.content(), (member.record.height, member.record.width))
    layout.check_mask(mask)
    return mask

"""Pictures that crops are cut from: one sample, or four pieced together."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from d2ls.data.decode import PixelFormat, read_image, read_mask
from d2ls.data.orders import Box
from d2ls.data.reader import ShardReader, open_sample
from d2ls.errors import DataError, ShardError
from d2ls.labels import IGNORE
from d2ls.shards.index import IndexRow


class SampleView(Protocol):
    """Image and labels of one size, decoded window by window."""

    height: int
    width: int

    def image(self, box: Box) -> npt.NDArray[Any]:
        """Returns the pixels of a window, h w C."""

    def mask(self, box: Box) -> npt.NDArray[np.uint8]:
        """Returns the labels of a window, h w."""


class ShardSample:
    """One sample of the shards.

    Args:
        files: where to read.
        record: which one.
        layout: what it must look like.
        verify: whether to compare the members with their checksums.

    Raises:
        DataError: from any method, with shard, key and cause, where the sample is damaged.
    """

    def __init__(self, files: ShardReader, record: IndexRow, layout: PixelFormat, *, verify: bool) -> None:
        self.height, self.width = record.height, record.width
        self._record, self._layout = record, layout
        self._mask: npt.NDArray[np.uint8] | None = None
        try:
            self._image_member, self._mask_member = open_sample(files, record, "image", "mask")
            if verify:
                self._verify()
        except DataError as error:
            raise self._named(error) from error

    def image(self, box: Box) -> npt.NDArray[Any]:
        """Returns the pixels of a window, h w C."""
        try:
            return read_image(self._image_member, self._layout, box)
        except DataError as error:
            raise self._named(error) from error

    def mask(self, box: Box) -> npt.NDArray[np.uint8]:
        """Returns the labels of a window, h w."""
        if self._mask is None:
            try:
                self._mask = read_mask(self._mask_member, self._layout)
            except DataError as error:
                raise self._named(error) from error
        top, left, height, width = box
        return self._mask[top : top + height, left : left + width]

    def _verify(self) -> None:
        for member in (self._image_member, self._mask_member):
            expected = getattr(self._record, f"{member.name}_crc32")
            found = zlib.crc32(member.content())
            if found != expected:
                raise ShardError(f"the {member.name} has checksum {found:08x}, the index says {expected:08x}")

    def _named(self, error: DataError) -> DataError:
        return type(error)(
            f"{self._record.shard}, sample {self._record.key}: {error}. "
            "Shard the data set again, or let the loader skip it with `bad_samples: skip`"
        )


@dataclass(frozen=True)
class _Part:
    """A window of a sample and where it stands in a mosaic."""

    picture: SampleView
    source: tuple[int, int]
    target: Box


class Mosaic:
    """Four samples side by side: a random window of each, around a random centre.

    The published mosaic (GeoSeg): the canvas has the size of the anchor, its centre lies between a quarter and three
    quarters of it. A sample smaller than its quarter leaves a border without labels.

    Args:
        pictures: the anchor and three partners; the anchor stands top left.
        generator: random numbers for centre and windows.
    """

    def __init__(self, pictures: Sequence[SampleView], generator: np.random.Generator) -> None:
        self.height, self.width = pictures[0].height, pictures[0].width
        y = int(generator.integers(self.height // 4, self.height * 3 // 4 + 1))
        x = int(generator.integers(self.width // 4, self.width * 3 // 4 + 1))
        quarters = (
            (0, 0, y, x),
            (0, x, y, self.width - x),
            (y, 0, self.height - y, x),
            (y, x, self.height - y, self.width - x),
        )
        self._parts = [_part(*pair, generator) for pair in zip(pictures, quarters, strict=True)]

    def image(self, box: Box) -> npt.NDArray[Any]:
        """Returns the pixels of a window, h w C; zero where no sample reaches."""
        out: npt.NDArray[Any] | None = None
        for part, source, target in self._touched(box):
            pixels = part.picture.image(source)
            if out is None:
                out = np.zeros((*box[2:], pixels.shape[2]), pixels.dtype)
            out[target] = pixels
        assert out is not None, "quarters cover the canvas, so a window touches one"
        return out

    def mask(self, box: Box) -> npt.NDArray[np.uint8]:
        """Returns the labels of a window, h w; 255 where no sample reaches."""
        out = np.full(box[2:], IGNORE, np.uint8)
        for part, source, target in self._touched(box):
            out[target] = part.picture.mask(source)
        return out

    def _touched(self, box: Box) -> list[tuple[_Part, Box, tuple[slice, slice]]]:
        touched = []
        for part in self._parts:
            top, height = _overlap(box[0], box[2], part.target[0], part.target[2])
            left, width = _overlap(box[1], box[3], part.target[1], part.target[3])
            if height <= 0 or width <= 0:
                continue
            source = (
                top - part.target[0] + part.source[0],
                left - part.target[1] + part.source[1],
                height,
                width,
            )
            y, x = top - box[0], left - box[1]
            touched.append((part, source, (slice(y, y + height), slice(x, x + width))))
        return touched


def _part(picture: SampleView, quarter: Box, generator: np.random.Generator) -> _Part:
    top, left, height, width = quarter
    height, width = min(height, picture.height), min(width, picture.width)
    source = (
        int(generator.integers(picture.height - height + 1)),
        int(generator.integers(picture.width - width + 1)),
    )
    return _Part(picture, source, (top, left, height, width))


def _overlap(start: int, length: int, other: int, other_length: int) -> tuple[int, int]:
    first = max(start, other)
    return first, min(start + length, other + other_length) - first

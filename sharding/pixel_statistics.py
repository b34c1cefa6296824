"""Integer sums over pixels. They give exact means and standard deviations, whatever the order of addition."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from d2ls.errors import DataError
from sharding.raster import Pixels
from sharding.raster.base import Mask

Scale = tuple[tuple[float, float], ...]
"""Values of float images that stand for dark and bright, a pair per channel."""


@dataclass
class PixelSums:
    """Integer sums of each channel over the unpadded pixels that hold data.

    Attributes:
        count: pixels.
        total: sum of the values; for float images in steps of 1/65535 of the scale.
        squares: sum of their squares.
        beyond: pixels of float images outside of the scale.
        highest: highest value of an integer image.
    """

    count: list[int] = field(default_factory=list)
    total: list[int] = field(default_factory=list)
    squares: list[int] = field(default_factory=list)
    beyond: list[int] = field(default_factory=list)
    highest: list[int] = field(default_factory=list)

    def add(self, image: Pixels, valid: Mask | None, scale: Scale | None = None) -> None:
        """Adds the pixels of an image.

        Args:
            image: H W C; uint8, uint16 or float32.
            valid: H W, where pixels hold data; None: everywhere.
            scale: of a float image.
        """
        bands = image.shape[2]
        self.count = self.count or [0] * bands
        self.beyond = self.beyond or [0] * bands
        self.highest = self.highest or [0] * bands
        self.total = self.total or [0] * bands
        self.squares = self.squares or [0] * bands
        for band in range(bands):
            counts = histogram(image, band, valid) if scale is None else self._steps(image, band, scale[band])
            self.count[band] += int(counts.sum())
            values = np.arange(len(counts), dtype=np.uint64)
            self.total[band] += int((counts * values).sum())
            self.squares[band] += int((counts * values * values).sum())
            self.highest[band] = max(self.highest[band], int(np.flatnonzero(counts)[-1:].sum()))

    def _steps(self, image: Pixels, band: int, scale: tuple[float, float]) -> npt.NDArray[np.uint64]:
        """Counts the pixels of a band by steps of the scale; values outside are clipped to it, NaN is not counted."""
        values, (low, high) = image[..., band], scale
        self.beyond[band] += int(((values < low) | (values > high)).sum())
        steps = np.nan_to_num((values.clip(low, high).astype(np.float64) - low) * (65535 / (high - low)))
        return histogram(np.rint(steps).astype(np.uint16), 0, np.isfinite(values))


def mean_and_std(
    sums: Iterable[PixelSums], max_value: float, scale: Scale | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation of each channel.

    Args:
        sums: of all shards; those without pixels do not count.
        max_value: integer pixels are divided by it.
        scale: of float images, whose mean and deviation are in their own units.

    Raises:
        DataError: a channel holds no data at all.
    """
    sums = [item for item in sums if item.count]
    bands = range(len(sums[0].total))
    count = [sum(item.count[band] for item in sums) for band in bands]
    total = [sum(item.total[band] for item in sums) for band in bands]
    squares = [sum(item.squares[band] for item in sums) for band in bands]
    if not all(count):
        raise DataError(
            "no pixel of the training split holds data, so there is no mean and no deviation. Check nodata values, "
            "alpha channels and masks of the images, and data.custom.nodata"
        )
    # count*squares - total**2 is exact in integers: no cancellation
    spread = [math.sqrt(count[band] * squares[band] - total[band] ** 2) for band in bands]
    if scale is None:
        mean = tuple(total[band] / count[band] / max_value for band in bands)
        return mean, tuple(spread[band] / count[band] / max_value for band in bands)
    step = [(high - low) / 65535 for low, high in scale]
    mean = tuple(scale[band][0] + total[band] / count[band] * step[band] for band in bands)
    return mean, tuple(spread[band] / count[band] * step[band] for band in bands)


def histogram(values: npt.NDArray[Any], band: int = 0, valid: Mask | None = None) -> npt.NDArray[np.uint64]:
    """Counts each value of unsigned integers, H W or one band of H W C: 256 counts for uint8, 65536 for uint16.

    Args:
        values: uint8 or uint16.
        band: which band of H W C.
        valid: pixels to count (H W); None: all.
    """
    size = 256 if values.dtype == np.uint8 else 65536
    bands = values.shape[2] if values.ndim == 3 else 1
    if values.shape[0] * values.shape[1] < 2**24 and bands <= 4:  # float32 counts are exact up to here
        mask = None if valid is None else valid.view(np.uint8)
        counts = cv2.calcHist([np.ascontiguousarray(values)], [band], mask, [size], [0, size])
        return np.asarray(counts.reshape(-1), np.uint64)
    flat = values.reshape(-1, bands)[:, band]
    if valid is not None:
        flat = flat[valid.reshape(-1)]
    return np.bincount(flat, minlength=size).astype(np.uint64)

"""Where windows lie on an image, and with what weight each of them counts at a pixel."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from d2ls.errors import ConfigError

Floats = npt.NDArray[np.float32]
Span = tuple[int, int]
"""First and one-past-last pixel of a window along one axis."""

ALIGNMENT = 32
"""Deepest stride of the encoders, in pixels."""

MARGIN = 0.25
"""Share of an overlap, on either side, in which the window that ends there has no say at all."""


def overlap_pixels(window: int, overlap: float) -> int:
    """Turns an overlap in shares of the window (0 to below 1) into whole pixels.

    Raises:
        ConfigError: a window below 1 pixel or an impossible overlap.
    """
    if window < 1:
        raise ConfigError(f"window {window}: a window needs at least 1 pixel")
    if not 0 <= overlap < 1:
        raise ConfigError(
            f"overlap {overlap}: give a share of the window, from 0 to below 1, for instance 0.25"
        )
    return min(round(window * overlap), window - 1)


def spans(length: int, window: int, overlap: int) -> list[Span]:
    """Covers 0..length with windows of one size and at least this overlap (pixels).

    All but the last, which ends where the image ends, begin at multiples of `ALIGNMENT`: a network with strides looks
    at the same patches then, and answers alike where windows meet. A length up to the window gets one span.
    """
    if length <= window:
        return [(0, length)]
    starts = [*range(0, length - window, _stride(window, overlap)), length - window]
    return [(start, start + window) for start in starts]


def span_count(length: int, window: int, overlap: int) -> int:
    """Number of spans that `spans` gives, without making them."""
    return 1 if length <= window else -(-(length - window) // _stride(window, overlap)) + 1


def _stride(window: int, overlap: int) -> int:
    return (window - overlap) // ALIGNMENT * ALIGNMENT or window - overlap


def blend(along: list[Span], margin: float = MARGIN) -> list[Floats]:
    """Weights of the windows along one axis; at every pixel they sum to one.

    Where two windows overlap, one fades out and the other in along a squared cosine. Over the outer `margin` of the
    overlap a window has weight zero: a network knows least about the pixels next to the edge of what it sees. Edges
    of the image itself do not fade.

    Args:
        along: spans in ascending order; each reaches into the next, or ends where it begins.
        margin: share of the overlap without a say, 0 to below 0.5.

    Returns:
        One weight a pixel for each span.
    """
    raw = [_fade(along, index, margin) for index in range(len(along))]
    total = np.zeros(along[-1][1], dtype=np.float64)
    for (start, stop), weights in zip(along, raw, strict=True):
        total[start:stop] += weights
    pairs = zip(along, raw, strict=True)
    return [(weights / total[start:stop]).astype(np.float32) for (start, stop), weights in pairs]


def _fade(along: list[Span], index: int, margin: float) -> npt.NDArray[np.float64]:
    start, stop = along[index]
    weights = np.ones(stop - start)
    if index > 0:
        shared = along[index - 1][1] - start
        weights[:shared] *= _ramp(shared, margin)
    if index + 1 < len(along):
        shared = stop - along[index + 1][0]
        weights[len(weights) - shared :] *= _ramp(shared, margin)[::-1]
    return weights


def _ramp(length: int, margin: float) -> npt.NDArray[np.float64]:
    """Rises from 0 to 1 over the middle of `length` pixels; with its own mirror image it sums to one."""
    position = (np.arange(length) + 0.5) / max(length, 1)
    share = np.clip((position - margin) / (1 - 2 * margin), 0, 1)
    return np.sin(share * np.pi / 2) ** 2


@dataclass(frozen=True)
class Grid:
    """Windows over an image: every span of rows crossed with every span of columns.

    Attributes:
        height: H of the image in pixels.
        width: W of the image.
        window: side of a window; smaller images are taken whole.
        overlap: least overlap of neighbours in pixels, below `window`.
    """

    height: int
    width: int
    window: int
    overlap: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ConfigError(f"an image of {self.height} x {self.width} pixels has nothing to look at")
        if not 0 <= self.overlap < self.window:
            raise ConfigError(
                f"overlap {self.overlap} must lie between 0 and the window, {self.window} pixels"
            )

    @cached_property
    def rows(self) -> list[Span]:
        """Spans of rows, top down."""
        return spans(self.height, self.window, self.overlap)

    @cached_property
    def columns(self) -> list[Span]:
        """Spans of columns, left to right."""
        return spans(self.width, self.window, self.overlap)

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.rows) * len(self.columns)

    def band(self, index: int) -> Span:
        """Rows that are final once the windows of row `index` are done and those above it were."""
        start = self.rows[index][0]
        return start, self.rows[index + 1][0] if index + 1 < len(self.rows) else self.height

    def first_row_reaching(self, index: int) -> int:
        """First row of windows that has a say in the band of row `index`."""
        top = self.rows[index][0]
        return next(i for i, (_, stop) in enumerate(self.rows) if stop > top or i == index)

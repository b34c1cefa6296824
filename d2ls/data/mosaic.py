"""Mosaic augmentation: four training samples pieced together into one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from d2ls.data.reader import SampleView
from d2ls.labels import IGNORE
from d2ls.window import Window


@dataclass(frozen=True)
class _Part:
    """A part of a sample and where it lies in the mosaic.

    Attributes:
        view: the sample.
        source: its row and column that stand at the upper left corner of `target`.
        target: window of the mosaic that it fills.
    """

    view: SampleView
    source: tuple[int, int]
    target: Window


class Mosaic:
    """A view of four samples side by side: a random window of each, around a random centre.

    The canvas has the size of the first sample; the centre lies between a quarter and three quarters of it. A sample
    smaller than its quarter leaves a border without labels. This is the mosaic of the published recipes (GeoSeg).

    Args:
        views: the sample itself, top left, and its three partners.
        generator: random numbers for centre and windows.
    """

    def __init__(self, views: Sequence[SampleView], generator: np.random.Generator) -> None:
        self.height, self.width = views[0].height, views[0].width
        y = int(generator.integers(self.height // 4, self.height * 3 // 4 + 1))
        x = int(generator.integers(self.width // 4, self.width * 3 // 4 + 1))
        quarters = (
            Window(0, 0, y, x),
            Window(0, x, y, self.width - x),
            Window(y, 0, self.height - y, x),
            Window(y, x, self.height - y, self.width - x),
        )
        self._parts = [_part(*pair, generator) for pair in zip(views, quarters, strict=True)]

    def image(self, window: Window) -> npt.NDArray[Any]:
        """Returns the pixels of a window, h w C; zero where there is no sample."""
        out: npt.NDArray[Any] | None = None
        for part, source, target in self._overlapping(window):
            pixels = part.view.image(source)
            if out is None:
                out = np.zeros((window.height, window.width, pixels.shape[2]), pixels.dtype)
            out[target] = pixels
        if out is None:  # nothing but border: the sample itself tells channels and type
            pixel = self._parts[0].view.image(Window(0, 0, 1, 1))
            out = np.zeros((window.height, window.width, pixel.shape[2]), pixel.dtype)
        return out

    def mask(self, window: Window) -> npt.NDArray[np.uint8]:
        """Returns the labels of a window, h w; 255 where there is no sample."""
        out = np.full((window.height, window.width), IGNORE, np.uint8)
        for part, source, target in self._overlapping(window):
            out[target] = part.view.mask(source)
        return out

    def _overlapping(self, window: Window) -> list[tuple[_Part, Window, tuple[slice, slice]]]:
        """Returns the parts in a window: part, window of its sample, and where that goes in the result."""
        overlapping = []
        for part in self._parts:
            target = part.target
            top, height = _overlap(window.row, window.height, target.row, target.height)
            left, width = _overlap(window.column, window.width, target.column, target.width)
            if height <= 0 or width <= 0:
                continue
            row, column = part.source
            source = Window(top - target.row + row, left - target.column + column, height, width)
            place = Window(top - window.row, left - window.column, height, width)
            overlapping.append((part, source, place.slices))
        return overlapping


def _part(view: SampleView, quarter: Window, generator: np.random.Generator) -> _Part:
    height, width = min(quarter.height, view.height), min(quarter.width, view.width)
    source = (
        int(generator.integers(view.height - height + 1)),
        int(generator.integers(view.width - width + 1)),
    )
    return _Part(view, source, Window(quarter.row, quarter.column, height, width))


def _overlap(start: int, length: int, other: int, other_length: int) -> tuple[int, int]:
    first = max(start, other)
    return first, min(start + length, other + other_length) - first

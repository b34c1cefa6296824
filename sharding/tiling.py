"""Cutting scenes into tiles: pure arithmetic on heights and widths."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from d2ls.errors import ConfigError
from d2ls.labels import IGNORE
from d2ls.window import Window

T = TypeVar("T", bound=np.generic)
Edge = Literal["shift", "pad", "drop"]
Padding = Literal["zero", "mirror"]


@dataclass(frozen=True)
class Tiling:
    """Rules for cutting scenes into tiles.

    Attributes:
        size: side of a square tile; None leaves scenes whole.
        stride: distance of tiles; None is the size. Never more than the size, so that no pixel is left out.
        padding: pixels beyond the edge of an image: `zero`, or the image mirrored. Labels there are ignored.
        edge: the last tile if tiles do not fit evenly: `shift` moves it back inside, `pad` extends it over the edge,
            `drop` leaves it out (only to repeat a published script).
        once: label each pixel in one tile only (evaluation): a tile ignores what an earlier tile covers.
    """

    size: int | None = None
    stride: int | None = None
    padding: Padding = "zero"
    edge: Edge = "shift"
    once: bool = True

    def __post_init__(self) -> None:
        if self.size is None and self.stride is not None:
            raise ConfigError("data.tiling: a stride needs a size; set both or neither")
        if self.size is not None and not 1 <= self.step <= self.size:
            raise ConfigError(
                f"data.tiling: stride {self.step} must be between 1 and the size {self.size}: "
                "a larger one would leave pixels out"
            )

    @property
    def step(self) -> int:
        """The stride; the size if no stride is given."""
        return self.stride if self.stride is not None else (self.size or 0)


@dataclass(frozen=True)
class Tile:
    """One tile of a scene.

    Attributes:
        window: its place in the scene; may reach over the edge.
        inside: the part of the window that lies in the scene.
        labelled: the part of `inside` whose labels count.
    """

    window: Window
    inside: Window
    labelled: Window


def tiles(height: int, width: int, tiling: Tiling) -> Iterator[Tile]:
    """Yields the tiles of a scene, row by row."""
    for top, bottom, from_row, to_row in _spans(height, tiling):
        for left, right, from_column, to_column in _spans(width, tiling):
            window = Window(top, left, bottom - top, right - left)
            inside = Window(top, left, min(bottom, height) - top, min(right, width) - left)
            labelled = Window(from_row, from_column, to_row - from_row, to_column - from_column)
            yield Tile(window, inside, labelled)


def _spans(length: int, tiling: Tiling) -> list[tuple[int, int, int, int]]:
    """Returns (start, end, first labelled, end of labelled) of the tiles along one axis."""
    if tiling.size is None:
        return [(0, length, 0, length)]
    spans: list[tuple[int, int, int, int]] = []
    covered = 0
    for start in _starts(length, tiling.size, tiling.step, tiling.edge):
        end = start + tiling.size
        first = max(start, covered) if tiling.once else start
        covered = min(end, length)
        spans.append((start, end, first, covered))
    return spans


def _starts(length: int, size: int, step: int, edge: Edge) -> list[int]:
    starts = list(range(0, length - size + 1, step))
    rest = length - (starts[-1] + size if starts else 0)
    if rest <= 0 or edge == "drop":
        return starts
    if not starts:
        return [0]
    return [*starts, length - size if edge == "shift" else starts[-1] + step]


def pad_image(pixels: npt.NDArray[T], tile: Tile, padding: Padding) -> npt.NDArray[T]:
    """Extends the inside of a tile (h w C) to its window (H W C) at the lower right."""
    missing = (tile.window.height - pixels.shape[0], tile.window.width - pixels.shape[1])
    if missing == (0, 0):
        return pixels
    widths = ((0, missing[0]), (0, missing[1]), (0, 0))
    return np.pad(pixels, widths, mode="symmetric") if padding == "mirror" else np.pad(pixels, widths)


def place_labels(ids: npt.NDArray[np.uint8], tile: Tile) -> npt.NDArray[np.uint8]:
    """Puts the class ids of the inside (h w) into the tile (H W); 255 beyond the edge and where they do not count."""
    window, inside, labelled = tile.window, tile.inside, tile.labelled
    if window == inside == labelled:
        return ids
    placed = np.full((window.height, window.width), IGNORE, np.uint8)
    row, column = labelled.row - window.row, labelled.column - window.column
    area = (slice(row, row + labelled.height), slice(column, column + labelled.width))
    placed[area] = ids[area]
    return placed

"""One orthomosaic, several splits: square blocks, each in one split, with a buffer between splits.

Blocks are assigned to splits so that each split's share of every class is close to its fraction. The error of an
assignment is the sum of (share - fraction)^2 / fraction over splits and classes; all labelled pixels together count
as a further class. So rare classes count as much as common ones. Blocks are assigned in the order of their largest
share of a class, each to the split where the error grows least. Then single blocks are moved and pairs swapped as
long as the error falls.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from d2ls.errors import ConfigError, DataError

LEAST_GAIN = 1e-9
"""Changes that lower the error by less than this are not made."""


@dataclass(frozen=True)
class Block:
    """A piece of ground that belongs to one split as a whole.

    Attributes:
        name: `r00_c00`, from the north and from the west.
        outline: west, south, east, north in units of the CRS.
    """

    name: str
    outline: tuple[float, float, float, float]

    @property
    def box(self) -> Any:
        """The outline as a shapely polygon."""
        return shapely.box(*self.outline)


def block_grid(bounds: tuple[float, float, float, float], size: float) -> list[Block]:
    """Cuts a rectangle into blocks from its north-west corner, row by row.

    The last block of a row or column takes the rest: it is half a size to one and a half sizes long.

    Args:
        bounds: west, south, east, north of all images together, in units of their CRS.
        size: side of a block in these units.
    """
    west, south, east, north = bounds
    columns, rows = (max(1, int(length / size + 0.5)) for length in (east - west, north - south))
    xs = [*(west + size * column for column in range(columns)), east]
    ys = [*(north - size * row for row in range(rows)), south]
    return [
        Block(f"r{row:02d}_c{column:02d}", (xs[column], ys[row + 1], xs[column + 1], ys[row]))
        for row in range(rows)
        for column in range(columns)
    ]


def deal_blocks(pixels: npt.NDArray[np.int64], fractions: Mapping[str, float], seed: int) -> list[str]:
    """Deals blocks to splits so that each split gets its share of every class, as closely as whole blocks allow.

    Args:
        pixels: labelled pixels of each class in each block (B K).
        fractions: split to its share; the shares add up to 1.
        seed: decides between equally good blocks.

    Returns:
        The split of each block (B); empty for blocks without a labelled pixel.

    Raises:
        DataError: fewer labelled blocks than splits.
    """
    totals = pixels.sum(axis=1)
    labelled = np.flatnonzero(totals)
    if len(labelled) < len(fractions):
        raise DataError(
            f"{len(labelled)} block(s) with labels cannot fill {len(fractions)} splits ({', '.join(fractions)}). Make "
            "data.custom.split.blocks.size_m smaller"
        )
    there = pixels[labelled][:, pixels.sum(axis=0) > 0]
    counts = np.concatenate([there, totals[labelled, None]], axis=1)
    numbers = _Deal(counts / counts.sum(axis=0), np.array([*fractions.values()]), seed).run()
    names = [""] * len(pixels)
    for block, number in zip(labelled, numbers, strict=True):
        names[block] = list(fractions)[number]
    return names


class _Deal:
    """The search of `deal_blocks`.

    Args:
        blocks: share of each class, and of all pixels, that lies in each block (B C).
        shares: share of each split (S).
        seed: order of equally large blocks.
    """

    def __init__(self, blocks: npt.NDArray[np.float64], shares: npt.NDArray[np.float64], seed: int) -> None:
        self._blocks, self._shares = blocks, shares[:, None]
        self._order = random.Random(seed).sample(range(len(blocks)), len(blocks))
        self._order.sort(key=lambda block: -float(blocks[block].max()))
        self._owner = np.full(len(blocks), -1)
        self._lacking = np.repeat(self._shares, blocks.shape[1], axis=1)

    def run(self) -> list[int]:
        """Returns the number of the split of each block."""
        for left, block in zip(range(len(self._order), 0, -1), self._order, strict=True):
            empty = np.flatnonzero(~np.isin(np.arange(len(self._shares)), self._owner))
            candidates = empty if len(empty) >= left else np.arange(len(self._shares))
            growth = self._error(self._lacking - self._blocks[block]) - self._error(self._lacking)
            self._give(block, int(candidates[growth[candidates].argmin()]))
        while any(self._move(block) or self._swap(block) for block in self._order):
            pass
        return [int(owner) for owner in self._owner]

    def _error(self, lacking: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Returns the squared deviation of each split, relative to its share (S)."""
        return np.asarray((lacking**2 / self._shares).sum(axis=1))

    def _give(self, block: int, split: int) -> None:
        if self._owner[block] >= 0:
            self._lacking[self._owner[block]] += self._blocks[block]
        self._lacking[split] -= self._blocks[block]
        self._owner[block] = split

    def _move(self, block: int) -> bool:
        """Moves a block to another split if that lowers the error; returns whether it did."""
        owner = self._owner[block]
        if (self._owner == owner).sum() == 1:
            return False
        gain = self._error(self._lacking) - self._error(self._lacking - self._blocks[block])
        loss = (self._error(self._lacking + self._blocks[block]) - self._error(self._lacking))[owner]
        gain[owner] = -np.inf
        if gain.max() - loss <= LEAST_GAIN:
            return False
        self._give(block, int(gain.argmax()))
        return True

    def _swap(self, block: int) -> bool:
        """Exchanges a block for one of another split if that lowers the error; returns whether it did."""
        owner = self._owner[block]
        others = np.flatnonzero(self._owner != owner)
        owners = self._owner[others]
        change = self._blocks[others] - self._blocks[block]
        error = self._error(self._lacking)
        here = ((self._lacking[owner] - change) ** 2).sum(axis=1) / self._shares[owner]
        there = ((self._lacking[owners] + change) ** 2).sum(axis=1) / self._shares[owners, 0]
        gain = error[owner] + error[owners] - here - there
        if not len(others) or gain.max() <= LEAST_GAIN:
            return False
        other = int(others[gain.argmax()])
        self._give(other, int(owner))
        self._give(block, int(owners[gain.argmax()]))
        return True


def deal_folds(pixels: npt.NDArray[np.int64], k: int, n: int, seed: int) -> list[str]:
    """Deals blocks to n folds of equal shares; fold k is `test`, the next one `val`, the others are `train`."""
    folds = deal_blocks(pixels, {str(number): 1 / n for number in range(1, n + 1)}, seed)
    return [fold_split(int(fold), k, n) if fold else "" for fold in folds]


def fold_split(fold: int, k: int, n: int) -> str:
    """Returns the split of a fold (1 to n) if fold k is the test split."""
    return {k: "test", k % n + 1: "val"}.get(fold, "train")


def labelled_areas(blocks: Sequence[Block], splits: Sequence[str], buffer: float) -> list[Any]:
    """Removes half of the buffer from each side of a block that adjoins a block of another split, or of none.

    A line from one split to another leaves the blocks of the first and later enters those of the second. Half of the
    buffer is removed at both places, so the ends of the line are at least the buffer apart.

    Args:
        blocks: all blocks of a grid.
        splits: split of each; empty for none.
        buffer: width of the strip between splits, in units of the CRS.

    Returns:
        The remaining polygon of each block, which may be empty.
    """
    boxes = np.array([block.box for block in blocks], object)
    if not buffer:
        return list(boxes)
    tree = shapely.STRtree(boxes)
    areas = []
    for index, box in enumerate(boxes):
        near = tree.query(box, predicate="dwithin", distance=buffer / 2)
        others = [boxes[other] for other in near if splits[other] != splits[index]]
        strip = shapely.buffer(shapely.union_all(others), buffer / 2, join_style="mitre") if others else None
        areas.append(box if strip is None else shapely.difference(box, strip))
    return areas


@dataclass(frozen=True)
class Gap:
    """The smallest distance between the labelled ground of two splits."""

    first: str
    second: str
    distance: float


def smallest_gaps(areas: Iterable[tuple[str, Any]], reach: float) -> list[Gap]:
    """Measures the distance between the ground of each two splits.

    Args:
        areas: split and labelled ground (a polygon of shapely) of each piece.
        reach: largest distance to look for, in units of the polygons.

    Returns:
        The smallest distance of each pair of splits that are at most `reach` apart.
    """
    pieces = [(split, area) for split, area in areas if not area.is_empty]
    shapes = np.array([area for _, area in pieces], object)
    splits = np.array([split for split, _ in pieces])
    first, second = shapely.STRtree(shapes).query(shapes, predicate="dwithin", distance=reach)
    differ = splits[first] < splits[second]
    first, second = first[differ], second[differ]
    distances = shapely.distance(shapes[first], shapes[second])
    gaps: dict[tuple[str, str], float] = {}
    for one, other, distance in zip(
        splits[first].tolist(), splits[second].tolist(), distances.tolist(), strict=True
    ):
        gaps[one, other] = min(distance, gaps.get((one, other), distance))
    return [Gap(one, other, distance) for (one, other), distance in sorted(gaps.items())]


def require_fold(k: int, n: int) -> None:
    """Refuses folds that leave a split empty.

    Raises:
        ConfigError: fewer than 3 folds, or no such fold.
    """
    if n < 3 or not 1 <= k <= n:
        raise ConfigError(
            f"data.custom.split.fold: {{k: {k}, n: {n}}} is not possible: n is 3 or more (one fold is test, one is "
            "val, the rest is train), and k is 1 to n"
        )

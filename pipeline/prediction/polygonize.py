"""Turns a label raster into polygons, with memory for one strip and the polygons that reach into the next one.

`rasterio.features.shapes` outlines each strip. Polygons that touch the border of two strips are joined. Both sides get
a vertex wherever the other has one, so their common edges are equal and `shapely.coverage_union_all` removes them.
Pixel coordinates are whole numbers, so neighbours share edges without gaps or overlaps.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.features
import shapely
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from d2ls.errors import DataError

MAX_SIMPLIFIED_VERTICES = 20_000_000
"""Simplifying keeps all polygons in memory, about 100 bytes per vertex."""

Geometries = npt.NDArray[np.object_]
Ints = npt.NDArray[np.int64]
Strip = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Polygons:
    """Some polygons of a map, in pixel coordinates (column, row).

    Attributes:
        geometries: shapes (N), of 4-connected pixels of one class.
        class_ids: class of each (N).
        pixels: pixels of each (N).
        steps: sum of the confidence steps of these pixels (N).
    """

    geometries: Geometries
    class_ids: Ints
    pixels: Ints
    steps: Ints


def polygonize(strips: Iterable[Strip], classes: Collection[int]) -> Iterator[Polygons]:
    """Outlines the regions of chosen classes.

    Args:
        strips: labels and confidence steps (h W, uint8), from the top down.
        classes: class ids to outline.

    Yields:
        Finished polygons, each once.
    """
    joiner = _Joiner(np.isin(np.arange(256), list(classes)))
    for labels, steps in strips:
        yield joiner.add(labels, steps)
    yield joiner.close()


def simplified(batches: Iterable[Polygons], nodes: "Nodes", tolerance: float, name: str) -> Polygons:
    """Simplifies polygons so that neighbours keep a common edge.

    Args:
        batches: polygons in pixel coordinates.
        nodes: complete when `batches` is exhausted.
        tolerance: features narrower than about this many pixels are removed, see `shapely.coverage_simplify`.
        name: name of the map, for messages.

    Raises:
        DataError: too many vertices for the memory of a usual machine.
    """
    kept: list[Polygons] = []
    vertices = 0
    for batch in batches:
        vertices += int(shapely.get_num_coordinates(batch.geometries).sum())
        if vertices > MAX_SIMPLIFIED_VERTICES:
            raise DataError(
                f"{name}: more than {MAX_SIMPLIFIED_VERTICES:,} vertices to simplify. Remove small parts with "
                "--min-area-m2, choose fewer --polygon-classes, or leave out --simplify-m"
            )
        kept.append(batch)
    names = ("geometries", "class_ids", "pixels", "steps")
    geometries, class_ids, pixels, steps = (np.concatenate([getattr(b, n) for b in kept]) for n in names)
    if len(geometries):
        geometries = nodes.insert(geometries)
        geometries = shapely.coverage_simplify(geometries, tolerance)
    there = ~shapely.is_empty(geometries)
    return Polygons(geometries[there], class_ids[there], pixels[there], steps[there])


class Nodes:
    """Corners of pixels where three or more regions meet. Neighbours need a vertex there before they are simplified.

    Args:
        height: rows of the map.
        width: columns.
    """

    def __init__(self, height: int, width: int) -> None:
        self._size = height, width
        self._above: npt.NDArray[np.uint8] | None = None
        self._top = 0
        self._rows: list[Ints] = []
        self._columns: list[Ints] = []

    def watch(self, strips: Iterable[Strip]) -> Iterator[Strip]:
        """Yields the strips unchanged, and collects the nodes in them."""
        for labels, steps in strips:
            block = labels if self._above is None else np.concatenate([self._above, labels])
            across = block[:, 1:] != block[:, :-1]
            down = block[1:] != block[:-1]
            meeting = across[1:].astype(np.uint8) + across[:-1] + down[:, 1:] + down[:, :-1]
            rows, columns = np.nonzero(meeting >= 3)
            self._rows.append(rows + (self._top + 1 - (self._above is not None)))
            self._columns.append(columns + 1)
            self._above = labels[-1:]
            self._top += len(labels)
            yield labels, steps

    def insert(self, geometries: Geometries) -> Geometries:
        """Gives polygons a vertex at every node on their edges."""
        height, width = self._size
        rows, columns = np.concatenate(self._rows), np.concatenate(self._columns)
        level = _with_vertices(geometries, np.sort(rows * (width + 1) + columns), width + 1, axis=1)
        return _with_vertices(level, np.sort(columns * (height + 1) + rows), height + 1, axis=0)


@dataclass
class _Region:
    """A region that touches a border of strips: the part seen so far."""

    class_id: int
    pixels: int
    steps: int
    first_border: int
    pieces: list[Any] = field(default_factory=list)

    def take(self, other: "_Region") -> None:
        """Merges another part of the same region into this one."""
        self.pixels += other.pixels
        self.steps += other.steps
        self.pieces += other.pieces
        self.first_border = min(self.first_border, other.first_border)


class _Joiner:
    """Outlines strips, and joins regions that continue in the next strip.

    Args:
        chosen: for each label value, whether it is outlined (256).
    """

    def __init__(self, chosen: npt.NDArray[np.bool_]) -> None:
        self.chosen = chosen
        self.top = self.next_number = 0
        self.regions: dict[int, _Region] = {}
        self.last_labels: npt.NDArray[np.uint8] | None = None
        self.last_numbers: Ints = np.empty(
            0, np.int64
        )  # region of each pixel of the last row, -1: not chosen
        self.borders: list[Ints] = []  # columns of the vertices on each border, as keys of `_with_vertices`

    def add(self, labels: npt.NDArray[np.uint8], steps: npt.NDArray[np.uint8]) -> Polygons:
        """Outlines a strip; returns the polygons that end in it."""
        ids, class_ids, pixels, sums = components(labels, steps)
        shapes, shape_ids = _outlines(ids, self.chosen[labels], self.top)
        touching = np.unique(ids[-1] if self.last_labels is None else ids[[0, -1]])
        touching = touching[self.chosen[class_ids[touching]]]
        inner = ~np.isin(shape_ids, touching)
        done = shape_ids[inner]

        self._note_border(labels)
        first, offset = max(len(self.borders) - 1, 0), self.next_number
        for i in touching.tolist():
            self.regions[offset + i] = _Region(int(class_ids[i]), int(pixels[i]), int(sums[i]), first)
        for shape, i in zip(shapes[~inner], shape_ids[~inner].tolist(), strict=True):
            self.regions[offset + i].pieces.append(shape)
        closed = self._link(labels, ids.astype(np.int64) + offset)
        self.top += len(labels)
        self.next_number += len(class_ids)
        return _concatenated(
            Polygons(shapes[inner], class_ids[done], pixels[done], sums[done]), self._joined(closed)
        )

    def close(self) -> Polygons:
        """Returns the polygons that end with the last row."""
        return self._joined(list(self.regions.values()))

    def _note_border(self, labels: npt.NDArray[np.uint8]) -> None:
        if self.last_labels is not None:
            changes = (labels[0, 1:] != labels[0, :-1]) | (self.last_labels[1:] != self.last_labels[:-1])
            self.borders.append(self.top * (labels.shape[1] + 1) + 1 + np.flatnonzero(changes))

    def _link(self, labels: npt.NDArray[np.uint8], numbers: Ints) -> list[_Region]:
        """Joins the regions above the border with those below; returns those that do not reach the last row."""
        parent: dict[int, int] = {}

        def find(number: int) -> int:
            while number in parent:
                number = parent[number]
            return number

        if self.last_labels is not None:
            same = (labels[0] == self.last_labels) & self.chosen[labels[0]]
            pairs = np.unique(np.stack([self.last_numbers[same], numbers[0][same]]), axis=1)
            for above, below in pairs.T.tolist():
                first, second = find(above), find(below)
                if first != second:
                    self.regions[first].take(self.regions.pop(second))
                    parent[second] = first
        open_numbers, where = np.unique(numbers[-1], return_inverse=True)
        roots = np.array([find(number) for number in open_numbers.tolist()], np.int64)
        self.last_numbers = np.where(self.chosen[labels[-1]], roots[where], -1)
        self.last_labels = labels[-1].copy()
        still_open = set(self.last_numbers.tolist())
        return [self.regions.pop(number) for number in list(self.regions) if number not in still_open]

    def _joined(self, regions: list[_Region]) -> Polygons:
        whole = np.empty(len(regions), object)
        several = [index for index, region in enumerate(regions) if len(region.pieces) > 1]
        if several:
            pieces = np.array([piece for index in several for piece in regions[index].pieces], object)
            keys = np.concatenate(self.borders[min(regions[index].first_border for index in several) :])
            pieces = _with_vertices(pieces, keys, len(self.last_numbers) + 1, axis=1)
            ends = np.cumsum([len(regions[index].pieces) for index in several])
            for index, part in zip(several, np.split(pieces, ends[:-1]), strict=True):
                whole[index] = shapely.simplify(shapely.coverage_union_all(part), 0, preserve_topology=False)
        for index, region in enumerate(regions):
            if len(region.pieces) == 1:
                whole[index] = region.pieces[0]
        values = [(region.class_id, region.pixels, region.steps) for region in regions]
        class_ids, pixels, steps = np.array(values, np.int64).reshape(-1, 3).T
        return Polygons(whole, class_ids, pixels, steps)


def _concatenated(first: Polygons, second: Polygons) -> Polygons:
    names = ("geometries", "class_ids", "pixels", "steps")
    return Polygons(*(np.concatenate([getattr(first, name), getattr(second, name)]) for name in names))


def components(
    labels: npt.NDArray[np.integer], steps: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.int32], Ints, Ints, Ints]:
    """Finds the 4-connected regions of equal label.

    Args:
        labels: any whole numbers, h W.
        steps: values to add up in each region, h W.

    Returns:
        Region of each pixel (h W), and of each region its label, its pixels, and the sum of its steps.
    """
    starts = np.ones(labels.shape, bool)  # where a run of equal labels begins in its row
    starts[:, 1:] = labels[:, 1:] != labels[:, :-1]
    runs = np.cumsum(starts.ravel(), dtype=np.int32).reshape(labels.shape) - 1
    first = np.flatnonzero(starts)
    # The overlap of two runs above each other starts where one of them starts.
    overlap = (labels[1:] == labels[:-1]) & (starts[1:] | starts[:-1])
    edges = runs[:-1][overlap], runs[1:][overlap]
    graph = coo_array((np.ones(len(edges[0]), bool), edges), shape=(len(first), len(first)))
    count, region_of_run = connected_components(graph, directed=False)
    lengths = np.diff(first, append=labels.size)
    sums = np.add.reduceat(steps.ravel(), first, dtype=np.int64)
    values = np.empty(count, np.int64)
    values[region_of_run] = labels.ravel()[first]
    pixels = np.bincount(region_of_run, lengths, count).astype(np.int64)
    return region_of_run[runs], values, pixels, np.bincount(region_of_run, sums, count).astype(np.int64)


def _outlines(ids: npt.NDArray[np.int32], mask: npt.NDArray[np.bool_], top: int) -> tuple[Geometries, Ints]:
    """Outlines regions by `rasterio.features.shapes`; returns shapes and their regions."""
    if not mask.any():
        return np.empty(0, object), np.empty(0, np.int64)
    coordinates: list[npt.NDArray[np.float64]] = []
    ring_sizes, ring_counts, numbers = [], [], []
    place = rasterio.Affine.translation(0, top)
    for shape, number in rasterio.features.shapes(ids, mask=mask, connectivity=4, transform=place):
        rings = shape["coordinates"]
        ring_sizes += [len(ring) for ring in rings]
        ring_counts.append(len(rings))
        numbers.append(int(number))
        coordinates.append(np.fromiter(chain.from_iterable(chain.from_iterable(rings)), np.float64))
    rings_end = np.concatenate([[0], np.cumsum(ring_sizes)])
    polygons_end = np.concatenate([[0], np.cumsum(ring_counts)])
    points = np.concatenate(coordinates).reshape(-1, 2)
    shapes = shapely.from_ragged_array(shapely.GeometryType.POLYGON, points, (rings_end, polygons_end))
    return shapes, np.array(numbers, np.int64)


def _with_vertices(polygons: Geometries, keys: Ints, stride: int, *, axis: int) -> Geometries:
    """Inserts vertices into edges that run along the pixel grid.

    Args:
        polygons: in pixel coordinates, all edges horizontal or vertical.
        keys: sorted; a vertex is written as its fixed coordinate times `stride` plus the other one.
        stride: see `keys`.
        axis: the coordinate that is constant along the edges: 1 for horizontal edges, 0 for vertical ones.
    """
    kind, points, (rings_end, polygons_end) = shapely.to_ragged_array(polygons)
    grid = np.rint(points).astype(np.int64)
    fixed, moving = grid[:, axis], grid[:, 1 - axis]
    start, end = fixed[:-1] * stride + moving[:-1], fixed[1:] * stride + moving[1:]
    along = (fixed[:-1] == fixed[1:]) & (moving[:-1] != moving[1:])
    along[rings_end[1:-1] - 1] = False  # from the end of a ring to the next one
    low = np.searchsorted(keys, np.minimum(start, end), side="right")
    high = np.searchsorted(keys, np.maximum(start, end), side="left")
    counts = np.where(along, np.maximum(high - low, 0), 0)
    edge = np.repeat(np.arange(len(counts)), counts)
    nth = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts)
    forward = start[edge] < end[edge]
    inserted = keys[np.where(forward, low[edge] + nth, high[edge] - 1 - nth)]
    new = np.empty((len(edge), 2), np.float64)
    new[:, axis], new[:, 1 - axis] = inserted // stride, inserted % stride
    before = np.concatenate([[0], np.cumsum(counts)])  # vertices inserted before each point
    points = np.insert(points, edge + 1, new, axis=0)
    rings_end = np.concatenate([[0], rings_end[1:] + before[rings_end[1:] - 1]])
    return shapely.from_ragged_array(kind, points, (rings_end, polygons_end))

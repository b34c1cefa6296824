"""Polygons on the pixel grid of a scene, read by window with little memory."""

from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio.features
import shapely

from d2ls.window import Window
from sharding.raster.vectors import Geometries

BLOCK = 2048
"""Side of the blocks in which polygons are rasterised, in pixels."""

CACHED_BLOCKS = 64
"""Blocks kept, of 4 MB each: two rows of blocks of a scene of 50000 columns."""

MARGIN = 2
"""Pixels around a block that are rasterised and cut away: GDAL clips outlines at the border of its raster, which
changes the pixels that they touch there."""

STEP = 2.0**-32
"""Pixel coordinates are multiples of this, so that moving them by whole pixels is exact."""


class PolygonGrid:
    """Polygons as pixel values.

    A window equals `rasterio.features.rasterize` of the whole scene. The exceptions are pixels with an outline
    through their centre (with `all_touched`, through a corner). There GDAL's rounding depends on the origin of its
    raster. Blocks lie on a fixed grid, so a pixel has the same value in every window.

    Args:
        polygons: shapes (N) in the CRS of the scene; later ones lie over earlier ones.
        values: value of each (N), uint8.
        transform: rasterio's Affine from column and row to x and y.
        height: rows of the scene.
        width: its columns.
        fill: value of pixels outside of all polygons.
        all_touched: burn every pixel that a polygon touches, not only those whose centre it covers.
    """

    def __init__(
        self,
        polygons: Geometries,
        values: npt.NDArray[np.uint8],
        transform: Any,
        height: int,
        width: int,
        *,
        fill: int,
        all_touched: bool = False,
    ) -> None:
        self._shapes = to_pixels(polygons, transform)
        self._values = values.tolist()
        self._size = (height, width)
        self._fill, self._all_touched = fill, all_touched
        self._tree = shapely.STRtree(self._shapes)
        self._blocks: OrderedDict[tuple[int, int], npt.NDArray[np.uint8]] = OrderedDict()

    def read(self, area: Window) -> npt.NDArray[np.uint8]:
        """Returns the values of a window of the scene (h w)."""
        pixels = np.empty((area.height, area.width), np.uint8)
        bottom, right = area.row + area.height, area.column + area.width
        for top in range(area.row // BLOCK * BLOCK, bottom, BLOCK):
            for left in range(area.column // BLOCK * BLOCK, right, BLOCK):
                block = self._block(top, left)
                first_row, first_column = max(top, area.row), max(left, area.column)
                part = block[first_row - top : bottom - top, first_column - left : right - left]
                row, column = first_row - area.row, first_column - area.column
                pixels[row : row + part.shape[0], column : column + part.shape[1]] = part
        return pixels

    @property
    def count(self) -> int:
        """Number of polygons that reach into the scene."""
        return int(self._tree.query(shapely.box(0, 0, *self._size[::-1]), predicate="intersects").size)

    def touches(self, area: Window) -> bool:
        """Returns whether a polygon reaches into a window of the scene."""
        box = shapely.box(area.column, area.row, area.column + area.width, area.row + area.height)
        return bool(self._tree.query(box, predicate="intersects").size)

    def _block(self, top: int, left: int) -> npt.NDArray[np.uint8]:
        key = (top, left)
        if key not in self._blocks:
            self._blocks[key] = self._rasterised(top, left)
            if len(self._blocks) > CACHED_BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(key)
        return self._blocks[key]

    def _rasterised(self, top: int, left: int) -> npt.NDArray[np.uint8]:
        height, width = min(BLOCK, self._size[0] - top), min(BLOCK, self._size[1] - left)
        pixels = np.full((height + 2 * MARGIN, width + 2 * MARGIN), self._fill, np.uint8)
        corner = np.array([left - MARGIN, top - MARGIN], np.float64)
        box = shapely.box(*corner, *(corner + pixels.shape[::-1]))
        hits = np.sort(self._tree.query(box))
        if hits.size:
            moved = shapely.transform(self._shapes[hits], lambda points: points - corner)
            values = (self._values[hit] for hit in hits)
            rasterio.features.rasterize(
                zip(moved, values, strict=True), out=pixels, all_touched=self._all_touched
            )
        return pixels[MARGIN : MARGIN + height, MARGIN : MARGIN + width].copy()


def to_pixels(geometries: Geometries, transform: Any) -> Geometries:
    """Converts x and y into columns and rows, with the arithmetic of GDAL's rasteriser."""
    column, across, down, row, across_row, down_row = _inverse(transform)

    def moved(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        x, y = points[:, 0], points[:, 1]
        pixels = np.stack([column + x * across + y * down, row + x * across_row + y * down_row], axis=1)
        return np.rint(pixels / STEP) * STEP

    return np.asarray(shapely.transform(geometries, moved))


def _inverse(transform: Any) -> tuple[float, ...]:
    """Inverts a transform in the order of GDAL, as GDALInvGeoTransform does."""
    x, a, b, y, d, e = transform.to_gdal()
    if b == 0 and d == 0:
        return -x / a, 1 / a, 0.0, -y / e, 0.0, 1 / e
    scale = 1 / (a * e - b * d)
    return (b * y - x * e) * scale, e * scale, -b * scale, (-a * y + x * d) * scale, -d * scale, a * scale

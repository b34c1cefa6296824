"""Compares the grids of an image and its label image, and resamples labels to the grid of the image."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import rasterio.warp

from d2ls.window import Window
from sharding.raster.base import Georeference, Mask, Raster, crs_text
from sharding.raster.labels import read_with_alpha, without_opaque

Align = Literal["refuse", "resample", "ignore"]
"""What to do if image and label image have different grids: refuse them, resample the labels, or pair pixels as
stored."""

TOLERANCE = 0.1
"""Largest difference of corners on one grid, in pixels."""

LEAST_OVERLAP = 0.5
"""Share of the image that a label image must cover to count as the same ground."""

_BLOCK = 2**18  # pixels whose positions are computed at once

Points = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


@dataclass(frozen=True)
class GridDifference:
    """Difference between the grids of a label image and its image.

    Attributes:
        text: the difference in numbers.
        same_ground: whether the label image can be resampled to the image.
    """

    text: str
    same_ground: bool


def compare_grids(image: Raster, labels: Raster) -> GridDifference | None:
    """Compares two georeferenced grids; returns None if they are equal, or if one of them is not georeferenced.

    A label image whose rows go from south to north does not fit an image without a georeference.
    """
    here, there = image.georeference, labels.georeference
    if there.placed and not here.placed and not here.gcps and there.transform.e > 0:
        text = (
            "the label image is stored south-up, and the image has no georeference that tells which way it is"
        )
        return GridDifference(text, same_ground=False)
    if not here.placed or not there.placed:
        return None
    size, label_size = (image.info.height, image.info.width), (labels.info.height, labels.info.width)
    columns, rows = _moved(_corners(*label_size), there, here, size)
    if not (np.isfinite(columns).all() and np.isfinite(rows).all()):
        text = f"{_crs_text(here, there)}; the label image cannot be projected to the image"
        return GridDifference(text, same_ground=False)
    across, down = _corners(*size)
    shift = float(np.hypot(columns - across, rows - down).max())
    if _same_crs(here, there) and size == label_size and shift <= TOLERANCE:
        return None
    overlap = _overlap(columns, rows, *size)
    metres = image.georeference.pixel_metres(*size)
    if overlap < LEAST_OVERLAP:
        away = math.hypot(columns.mean() - across.mean(), rows.mean() - down.mean())
        away_text = f"{_length(away, metres)} away, and covers {overlap:.0%} of the image"
        text = f"the label image is of other ground, {away_text}"
        return GridDifference(text, same_ground=False)
    top_left = (float(columns.min()), float(rows.min()))
    return GridDifference(_differences(image, labels, top_left, shift, metres), same_ground=True)


class AlignedLabels:
    """A label image on the grid of its image: each pixel takes the label at its centre (nearest neighbour).

    Args:
        labels: the label image.
        image: its image.
    """

    def __init__(self, labels: Raster, image: Raster) -> None:
        self._labels, self._image = labels, image

    def read(self, area: Window, *, colors: bool) -> tuple[npt.NDArray[Any], Mask]:
        """Reads raw labels of a window of the image.

        Returns:
            Ids (h w) or colours (h w 3), and where the label image reaches (h w); other values are undefined.
        """
        step = max(1, _BLOCK // area.width)
        blocks = [
            self._block(Window(row, area.column, min(step, area.row + area.height - row), area.width), colors)
            for row in range(area.row, area.row + area.height, step)
        ]
        raw = without_opaque(np.concatenate([raw for raw, _ in blocks]), colors=colors)
        return raw, np.concatenate([covered for _, covered in blocks])

    def _block(self, area: Window, colors: bool) -> tuple[npt.NDArray[Any], Mask]:
        across, down = np.meshgrid(
            np.arange(area.column, area.column + area.width) + 0.5,
            np.arange(area.row, area.row + area.height) + 0.5,
        )
        height, width = self._labels.info.height, self._labels.info.width
        place = self._labels.georeference
        columns, rows = _moved((across, down), self._image.georeference, place, (height, width))
        covered = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        column = np.where(covered, columns, np.nan)
        row = np.where(covered, rows, np.nan)
        if not covered.any():
            raw = read_with_alpha(self._labels, Window(0, 0, 1, 1), colors=colors)
            return np.repeat(np.repeat(raw, area.height, 0), area.width, 1), covered
        left, top = int(np.nanmin(column)), int(np.nanmin(row))
        box = Window(top, left, int(np.nanmax(row)) - top + 1, int(np.nanmax(column)) - left + 1)
        raw = read_with_alpha(self._labels, box, colors=colors)
        y = np.where(covered, row - top, 0).astype(np.intp)
        x = np.where(covered, column - left, 0).astype(np.intp)
        return raw[y, x], covered


def _corners(height: int, width: int) -> Points:
    """Returns columns and rows of the corners and of the middle."""
    return (
        np.array([0, width, 0, width, width / 2], np.float64),
        np.array([0, 0, height, height, height / 2], np.float64),
    )


def _moved(points: Points, source: Georeference, target: Georeference, size: tuple[int, int]) -> Points:
    """Converts columns and rows of one raster into those of another, of a size (rows, columns)."""
    x, y = _applied(source.transform, points)
    if not _same_crs(source, target):
        shape = x.shape
        try:
            x, y = rasterio.warp.transform(source.crs, target.crs, x.ravel(), y.ravel())
        except Exception:  # GDAL's own errors, which rasterio does not turn into its own here
            return np.full(shape, np.nan), np.full(shape, np.nan)
        x, y = np.asarray(x).reshape(shape), np.asarray(y).reshape(shape)
    crs = target.crs or source.crs
    if crs and crs.is_geographic:  # a raster may continue beyond the 180th meridian
        turn = 2 * math.pi / float(crs.units_factor[1])
        middle, _ = target.transform @ (size[1] / 2, size[0] / 2)
        x = x + turn * np.rint((middle - x) / turn)
    return _applied(~target.transform, (x, y))


def _applied(transform: Any, points: Points) -> Points:
    first, second = points
    return (
        transform.a * first + transform.b * second + transform.c,
        transform.d * first + transform.e * second + transform.f,
    )


def _same_crs(first: Georeference, second: Georeference) -> bool:
    """Returns whether two CRS are equal; a raster without a CRS is assumed to have that of the other."""
    return not first.crs or not second.crs or first.crs == second.crs


def _overlap(
    columns: npt.NDArray[np.float64], rows: npt.NDArray[np.float64], height: int, width: int
) -> float:
    """Returns the share of the image inside the box around the label image."""
    across = min(float(columns.max()), width) - max(float(columns.min()), 0)
    down = min(float(rows.max()), height) - max(float(rows.min()), 0)
    return max(across, 0) * max(down, 0) / (height * width)


def _differences(
    image: Raster, labels: Raster, top_left: tuple[float, float], shift: float, metres: float | None
) -> str:
    here, there = image.georeference, labels.georeference
    differences = []
    if not _same_crs(here, there):
        differences.append(_crs_text(here, there))
    own = there.pixel_metres(labels.info.height, labels.info.width)
    if metres and own and abs(own / metres - 1) > 0.001:
        differences.append(f"pixels of {metres:.4g} m and {own:.4g} m")
    elif (size := _side(there) / _side(here)) and _same_crs(here, there) and abs(size - 1) > 0.001:
        differences.append(f"label pixels are {size:.4g} times as large")
    if here.transform.e * there.transform.e < 0:
        names = ("north-up", "south-up")
        differences.append(f"{names[here.transform.e > 0]} and {names[there.transform.e > 0]}")
    if _same_crs(here, there) and abs(turn := _angle(there) - _angle(here)) > 0.01:
        differences.append(f"turned by {turn:.2f} degrees")
    if math.hypot(*top_left) > TOLERANCE:
        across, down = top_left
        differences.append(f"labels start {_length(across, metres)} across and {_length(down, metres)} down")
    if (image.info.height, image.info.width) != (labels.info.height, labels.info.width):
        sizes = f"{image.info.height}x{image.info.width} and {labels.info.height}x{labels.info.width}"
        differences.append(f"{sizes} pixels (height x width)")
    if not differences or (len(differences) == 1 and not _same_crs(here, there)):
        differences.append(f"corners differ by up to {_length(shift, metres)}")
    return ", ".join(differences)


def _crs_text(here: Georeference, there: Georeference) -> str:
    text = f"CRS {crs_text(here.crs)} and {crs_text(there.crs)}"
    first, second = (without_datum(place.crs) for place in (here, there))
    return f"{text}, which differ in the datum only" if first == second else text


def without_datum(crs: Any) -> dict[str, Any]:
    """Returns the parameters of a CRS except those of its datum."""
    datum = ("datum", "ellps", "a", "b", "rf", "towgs84", "nadgrids")
    return {key: value for key, value in crs.to_dict().items() if key not in datum}


def _angle(place: Georeference) -> float:
    """Returns the direction of a row of pixels in degrees."""
    return math.degrees(math.atan2(place.transform.d, place.transform.a))


def _side(place: Georeference) -> float:
    return math.sqrt(abs(place.transform.determinant))


def _length(pixels: float, metres: float | None) -> str:
    if metres is None:
        return f"{pixels:.2f} pixels"
    length = pixels * metres
    return f"{pixels:.2f} pixels = " + (
        f"{length / 1000:.1f} km" if abs(length) >= 1000 else f"{length:.2f} m"
    )

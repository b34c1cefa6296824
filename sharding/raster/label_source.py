"""Class ids of a scene from a label image or vector labels, whole or within an area."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import shapely

from d2ls.labels import IGNORE, LabelCodes
from d2ls.window import Window
from sharding.files import FileRef
from sharding.raster.base import Raster
from sharding.raster.class_ids import ClassIds
from sharding.raster.polygon_grid import PolygonGrid
from sharding.raster.reader import open_raster
from sharding.raster.vector_labels import VectorLabels, vector_grid


class LabelSource(Protocol):
    """Class ids of a scene, read by window.

    Attributes:
        size: rows and columns.
    """

    @property
    def size(self) -> tuple[int, int]:
        """See above."""

    def read(self, area: Window) -> npt.NDArray[np.uint8]:
        """Returns the class ids of a window (h w); 255 for pixels without a label."""

    def raw(self, area: Window) -> npt.NDArray[Any]:
        """Returns the raw labels of a window as `count_code` takes them; of vector labels none."""


@contextmanager
def open_labels(
    labels: FileRef | VectorLabels,
    image: Raster,
    codes: LabelCodes,
    *,
    resampled: bool = False,
    area: bytes | None = None,
) -> Iterator[LabelSource]:
    """Opens the labels of a scene.

    Args:
        labels: a label image, or vector labels.
        image: the open image.
        codes: label codes of label images.
        resampled: whether a label image is resampled to the grid of the image.
        area: the labelled ground, as WKB in the CRS of the image; None: all of it.

    Raises:
        DataError: the labels cannot be read.
    """
    with ExitStack() as stack:
        source: LabelSource
        if isinstance(labels, VectorLabels):
            source = vector_grid(labels, image)
        else:
            mask = stack.enter_context(open_raster(labels))
            source = ClassIds(mask, codes, image if resampled else None)
        yield source if area is None else _WithinArea(source, area, image)


class _WithinArea:
    """Labels restricted to an area: pixels whose centre lies in it."""

    def __init__(self, source: LabelSource, area: bytes, image: Raster) -> None:
        self._source = source
        self.size = (image.info.height, image.info.width)
        shape = np.array([shapely.from_wkb(area)], object)
        self._area = PolygonGrid(
            shape, np.ones(1, np.uint8), image.georeference.transform, *self.size, fill=0
        )

    def read(self, area: Window) -> npt.NDArray[np.uint8]:
        """See `LabelSource.read`."""
        return np.where(self._area.read(area), self._source.read(area), np.uint8(IGNORE))

    def raw(self, area: Window) -> npt.NDArray[Any]:
        """See `LabelSource.raw`."""
        raw = self._source.raw(area)
        inside = self._area.read(area) > 0
        return raw[inside][None] if raw.shape[:2] == inside.shape else raw

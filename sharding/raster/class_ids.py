"""Reads the class ids of a label image by window, resampled to the grid of the image if that differs."""

from typing import Any

import numpy as np
import numpy.typing as npt

from d2ls.labels import IGNORE, LabelCodes
from d2ls.window import Window
from sharding.raster.base import Raster
from sharding.raster.grids import AlignedLabels
from sharding.raster.labels import read_labels
from sharding.raster.whole import WholeRaster


class ClassIds:
    """Reads class ids.

    Args:
        labels: the open label image.
        codes: its label codes.
        image: the open image to whose grid labels are resampled; None if they are on the same grid.

    Attributes:
        size: rows and columns of the class ids.
    """

    def __init__(self, labels: Raster, codes: LabelCodes, image: Raster | None = None) -> None:
        self._labels, self._codes = labels, codes
        info = (image or labels).info
        self.size = (info.height, info.width)
        self._aligned = AlignedLabels(labels, image) if image else None
        self._whole: npt.NDArray[np.uint8] | None = None

    def raw(self, area: Window) -> npt.NDArray[Any]:
        """Reads the raw labels of a window of the image that lie inside the label image, as `count_code` takes them."""
        if self._aligned is None:
            return read_labels(self._labels, area, colors=not self._codes.ids)
        raw, covered = self._aligned.read(area, colors=not self._codes.ids)
        return raw[covered][None]

    def read(self, area: Window) -> npt.NDArray[np.uint8]:
        """Reads the class ids of a window of the image (h w); 255 where the label image does not reach.

        Raises:
            DataError: a damaged file, or bands that are not labels.
            LabelError: a label that is not declared.
        """
        colors, origin, where = not self._codes.ids, (area.row, area.column), str(self._labels.ref)
        if self._aligned is not None:
            raw, covered = self._aligned.read(area, colors=colors)
            ids = self._codes.encode(raw, where=f"{where} (on the grid of the image)", origin=origin)
            return np.where(covered, ids, np.uint8(IGNORE))
        if not isinstance(self._labels, WholeRaster):
            return self._codes.encode(
                read_labels(self._labels, area, colors=colors), where=where, origin=origin
            )
        if self._whole is None:
            self._whole = self._codes.encode(read_labels(self._labels, None, colors=colors), where=where)
        return self._whole[area.row : area.row + area.height, area.column : area.column + area.width]

"""An open image: what its header says, and how its pixels and labels are read."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from d2ls.errors import DataError
from sharding.files import FileRef
from sharding.tiling import Window

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


@dataclass(frozen=True)
class RasterInfo:
    """What the header of an image says.

    Attributes:
        height: rows.
        width: columns.
        bands: channels after a palette is resolved (a palette image has 3).
        dtype: `uint8`, `uint16` or another name numpy knows.
        palette: pixels are stored as indices into a colour table.
        crs: EPSG code (`EPSG:26914`) or WKT; None where the image is not georeferenced.
        transform: six affine numbers, column and row to x and y; None likewise.
    """

    height: int
    width: int
    bands: int
    dtype: str
    palette: bool = False
    crs: str | None = None
    transform: tuple[float, ...] | None = None


class Raster(ABC):
    """An open image file."""

    def __init__(self, ref: FileRef, info: RasterInfo) -> None:
        self.ref = ref
        self.info = info

    @abstractmethod
    def pixels(self, window: Window | None = None) -> Pixels:
        """Reads H W C values, channels in file order (RGB where the file is RGB); palettes are resolved.

        Raises:
            DataError: the file is damaged.
        """

    @abstractmethod
    def indices(self, window: Window | None = None) -> Pixels:
        """Reads H W values of a single-band image; of a palette image the indices.

        Raises:
            DataError: the file is damaged or has several bands.
        """

    def labels(self, window: Window | None, *, colors: bool) -> Pixels:
        """Reads a label image: H W 3 colours, or H W ids.

        Raises:
            DataError: the file has other bands than its kind of label needs.
        """
        if not colors:
            return self.indices(window)
        raw = self.pixels(window)
        if raw.shape[2] == 4 and (raw[..., 3] == 255).all():
            raw = raw[..., :3]
        if raw.shape[2] != 3 or raw.dtype != np.uint8:
            raise DataError(
                f"{self.ref}: label colours need an 8-bit RGB or palette image, "
                f"this one has {raw.shape[2]} band(s) of {raw.dtype}"
            )
        return raw

    @abstractmethod
    def close(self) -> None:
        """Lets go of the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

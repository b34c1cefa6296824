"""An open image: its header, and how its pixels are read."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import cv2
import numpy as np
import numpy.typing as npt
import rasterio

from d2ls.window import Window
from sharding.files import FileRef

Pixels = npt.NDArray[Any]
"""uint8, uint16 or float32 as an image; any integers or floats as stored labels."""

Mask = npt.NDArray[np.bool_]

INTEGER_TYPES = ("uint8", "uint16")
"""Types that are stored unchanged."""

FLOAT_TYPES = ("int8", "int16", "float16", "float32", "float64")
"""Types that become float32, with NaN where a band holds no data."""

EARTH_RADIUS = 6_378_137.0
"""In metres."""

WEB_MERCATOR = (3857, 3395, 900913, 102100)
"""EPSG codes of world maps that enlarge an area at 60 degrees four times."""


@dataclass(frozen=True)
class Reading:
    """Settings of a recipe or a model about image files that the files do not state themselves.

    Attributes:
        nodata: value of pixels without data, in addition to the tags of the files; None if there is none.
        page: page of TIFF files of several pages, from 1; None refuses such files.
    """

    nodata: float | None = None
    page: int | None = None


@dataclass(frozen=True)
class Georeference:
    """Position of a raster on the ground.

    Attributes:
        crs: rasterio's CRS; None if the file names none.
        transform: rasterio's Affine from column and row to x and y; the identity if there is none.
        gcps: rasterio's ground control points, in place of a transform.
        gcps_crs: CRS of these; None if there are none.
        rpc: the file has only rational polynomial coefficients, which are not applied.
    """

    crs: Any
    transform: Any
    gcps: tuple[Any, ...] = ()
    gcps_crs: Any = None
    rpc: bool = False

    @classmethod
    def of(cls, file: Any) -> "Georeference":
        """Takes the georeference of an open rasterio file."""
        gcps, crs = file.gcps
        placed = bool(file.crs) or not file.transform.is_identity
        return cls(
            file.crs,
            file.transform,
            tuple(gcps),
            crs if gcps else None,
            rpc=not placed and not gcps and file.rpcs is not None,
        )

    @property
    def placed(self) -> bool:
        """Whether the file states how column and row give x and y."""
        return not self.transform.is_identity

    def pixel_metres(self, height: int, width: int) -> float | None:
        """Side of a pixel in metres, from the area that the middle pixel covers; None if unknown."""
        if not self.crs or not self.placed:
            return None
        across, up = self.metres_per_unit(height, width)
        return math.sqrt(abs(self.transform.determinant) * across * up)

    def pixel_sides(self, height: int, width: int) -> tuple[float, float] | None:
        """Height and width of a pixel on the ground in metres, in the middle of the raster; None if unknown.

        A square of degrees is not square on the ground.
        """
        if not self.crs or not self.placed:
            return None
        (across, up), place = self.metres_per_unit(height, width), self.transform
        return math.hypot(place.b * across, place.e * up), math.hypot(place.a * across, place.d * up)

    def metres_per_unit(self, height: int, width: int) -> tuple[float, float]:
        """Length on the ground of a unit of x and of y, in the middle of the raster; 1 if there is no CRS."""
        if not self.crs:
            return 1.0, 1.0
        unit = float(self.crs.units_factor[1])  # in radians or metres
        _, y = self.transform @ (width / 2, height / 2)
        if self.crs.is_geographic:
            return EARTH_RADIUS * unit * max(math.cos(y * unit), 1e-6), EARTH_RADIUS * unit
        if self.crs.to_epsg() in WEB_MERCATOR:
            unit /= math.cosh(y / EARTH_RADIUS)  # the cosine of the latitude
        return unit, unit


NOWHERE = Georeference(None, rasterio.Affine.identity())
"""Georeference of an image without one."""


@dataclass(frozen=True)
class RasterInfo:
    """The header of an image, as plain values.

    Attributes:
        height: rows, as displayed (an EXIF orientation is applied).
        width: columns, likewise.
        bands: channels after a palette is resolved (a palette image has 3), an alpha channel among them.
        dtype: `uint8`, `uint16` or another name numpy knows; of a palette image that of its colours.
        palette: pixels are stored as indices into a colour table.
        crs: EPSG code (`EPSG:26914`) or WKT; None where the image is not georeferenced.
        transform: six affine numbers, column and row to x and y; None likewise.
        names: for each band its description and its colour interpretation in lower case, empty where unknown.
        alpha: position of the alpha channel, from 0; None where there is none.
        gcps: row, column, x, y, z of each ground control point.
        gcps_crs: CRS of these, as `crs`.
        orientation: EXIF orientation that was applied; 1 for none.
        sidecars: size and time of the files that belong to this one: world files and the like, or the parts of a VRT.
    """

    height: int
    width: int
    bands: int
    dtype: str
    palette: bool = False
    crs: str | None = None
    transform: tuple[float, ...] | None = None
    names: tuple[tuple[str, str], ...] = ()
    alpha: int | None = None
    gcps: tuple[tuple[float, ...], ...] = ()
    gcps_crs: str | None = None
    orientation: int = 1
    sidecars: tuple[str, ...] = ()

    @property
    def read_as(self) -> str:
        """Type of the pixels that `Raster.read` returns; empty for an unsupported type."""
        if self.dtype in INTEGER_TYPES:
            return self.dtype
        return "float32" if self.dtype in FLOAT_TYPES else ""


class Raster(ABC):
    """An open image file.

    Args:
        ref: the file.
        info: its header.
        georeference: where it lies.
        reading: settings that the file does not state.

    Attributes:
        scaling: scale and offset tag of each band, which are not applied; empty if there are none.
    """

    scaling: tuple[tuple[float, float], ...] = ()

    def __init__(self, ref: FileRef, info: RasterInfo, georeference: Georeference, reading: Reading) -> None:
        self.ref = ref
        self.info = info
        self.georeference = georeference
        self.reading = reading

    @abstractmethod
    def read(
        self,
        window: Window | None = None,
        bands: Sequence[int] | None = None,
        grid: tuple[int, int] | None = None,
    ) -> tuple[Pixels, Mask | None]:
        """Reads pixels and where they hold data, by the same rule in training and prediction.

        A pixel holds data if any of the bands does and the alpha channel (unless it is one of the bands) is not 0. A
        band holds no data at the file's nodata value, outside the file's mask, at `Reading.nodata`, and at values that
        are not finite.

        Args:
            window: part of the result; None: all of it.
            bands: positions of the bands to read, from 0; None: all.
            grid: rows and columns of a raster over the same ground, to resample to; None: the file's own.

        Returns:
            Pixels (h w bands): uint8, uint16, or float32 with NaN where a band holds no data; and where pixels hold
            data (h w; None: everywhere).

        Raises:
            DataError: the file is damaged.
        """

    @abstractmethod
    def pixels(self, window: Window | None = None) -> Pixels:
        """Reads H W C values as they are stored, channels in file order; palettes are resolved to red, green, blue.

        Raises:
            DataError: the file is damaged.
        """

    @abstractmethod
    def indices(self, window: Window | None = None) -> Pixels:
        """Reads H W values of a single-band image; of a palette image the indices.

        Raises:
            DataError: the file is damaged or has several bands.
        """

    def mask(self, window: Window | None = None) -> Mask | None:
        """Reads the file's own mask, where it is neither an alpha channel nor nodata (h w); None: there is none."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Closes the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def unmixed(smooth: Pixels, nearest: Pixels, nodata: float, factor: float) -> Pixels:
    """Takes the nearest value around pixels without data, where resampling has mixed their value into others.

    Args:
        smooth: h w bands, resampled with interpolation.
        nearest: the same without.
        nodata: see `Reading.nodata`, which the file does not state.
        factor: enlargement of the sides.
    """
    holes = (nearest == nodata).any(axis=2)
    if not holes.any():
        return smooth
    side = 2 * (math.ceil(factor) + 1) + 1
    near = cv2.dilate(holes.astype(np.uint8), np.ones((side, side), np.uint8)) > 0
    return np.where(near[..., None], nearest, smooth)


def value_problem(value: float | None, dtype: str) -> str:
    """Returns why a value cannot occur in pixels of a type; empty if it can, and for None."""
    if value is None or dtype not in INTEGER_TYPES:
        return ""
    limits = np.iinfo(dtype)
    if float(value).is_integer() and limits.min <= value <= limits.max:
        return ""
    return f"{value:g} is no value of {dtype} images; allowed are {limits.min} to {limits.max}"


def with_data(
    raw: npt.NDArray[Any], masks: Mask | None, opaque: Mask | None, nodata: float | None
) -> tuple[Pixels, Mask | None]:
    """Applies the rule of `Raster.read`.

    Args:
        raw: h w bands, as stored.
        masks: h w bands (or h w 1), where bands hold data according to the file; None: everywhere.
        opaque: h w, where the alpha channel is not 0; None if there is none, or if it is one of the bands.
        nodata: see `Reading.nodata`.
    """
    if nodata is not None:
        has_data = np.asarray(raw != nodata)
        masks = has_data if masks is None else masks & has_data
    if raw.dtype.name in INTEGER_TYPES:
        valid = None if masks is None else np.asarray(masks.any(axis=2))
        if opaque is not None:
            valid = opaque if valid is None else valid & opaque
        return raw, valid
    pixels = raw.astype(np.float32)
    pixels[~np.isfinite(pixels)] = np.nan
    if masks is not None:
        pixels[~np.broadcast_to(masks, pixels.shape)] = np.nan
    if opaque is not None:
        pixels[~opaque] = np.nan
    return pixels, np.asarray(~np.isnan(pixels).all(axis=2))


def described(georeference: Georeference) -> dict[str, Any]:
    """Turns a georeference into the plain values of `RasterInfo`."""
    shown = bool(georeference.crs) or georeference.placed
    return {
        "crs": crs_text(georeference.crs),
        "transform": tuple(float(value) for value in tuple(georeference.transform)[:6]) if shown else None,
        "gcps": tuple((p.row, p.col, p.x, p.y, p.z or 0.0) for p in georeference.gcps),
        "gcps_crs": crs_text(georeference.gcps_crs),
    }


def crs_text(crs: Any) -> str | None:
    """Returns the EPSG code of a CRS, or WKT if it has none; None for no CRS."""
    if not crs:
        return None
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else str(crs.to_wkt())

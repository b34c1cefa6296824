"""The ground area of a pixel of a map. Areas need a CRS whose units are lengths with little distortion."""

import math
from dataclasses import dataclass
from typing import Any

import rasterio.warp

from d2ls.errors import DataError
from sharding.raster.base import WEB_MERCATOR, Georeference, crs_text


@dataclass(frozen=True)
class GroundArea:
    """Georeference of a map in a projected CRS.

    Attributes:
        crs: rasterio's CRS, projected.
        transform: rasterio's Affine from column and row to x and y.
        square_metres: ground area of a pixel.
    """

    crs: Any
    transform: Any
    square_metres: float

    @property
    def hectares(self) -> float:
        """Ground area of a pixel."""
        return self.square_metres / 10_000


def ground_area(name: str, place: Georeference, height: int, width: int, needed_by: str) -> GroundArea:
    """Returns the ground area of a pixel of a scene.

    Args:
        name: name of the scene, for messages.
        place: its georeference.
        height: its rows.
        width: its columns.
        needed_by: options that need areas, for messages.

    Raises:
        DataError: no georeference, no CRS, or one that distorts areas; with the gdalwarp command that helps.
    """
    if place.gcps and not place.placed:
        raise DataError(
            f"{name}: {needed_by} needs a scene on a straight grid, this one has ground control points alone. First: "
            "gdalwarp -t_srs EPSG:... in.tif out.tif"
        )
    if not place.placed or not place.crs:
        raise DataError(
            f"{name}: {needed_by} needs a scene with a place and a CRS; give it one, for instance with "
            "gdal_edit.py -a_srs EPSG:... or the georeferencer of QGIS"
        )
    code = place.crs.to_epsg()
    if place.crs.is_geographic or code in WEB_MERCATOR:
        why = "degrees" if place.crs.is_geographic else "web mercator, whose areas are not true"
        raise DataError(
            f"{name}: {needed_by} needs a CRS in metres, the scene is in {crs_text(place.crs)} ({why}). First: "
            f"gdalwarp -t_srs {utm_zone(place, height, width)} in.tif out.tif"
        )
    across, up = place.metres_per_unit(height, width)
    return GroundArea(place.crs, place.transform, abs(place.transform.determinant) * across * up)


def utm_zone(place: Georeference, height: int, width: int) -> str:
    """Returns the EPSG code of the UTM zone in which the middle of a scene lies."""
    x, y = place.transform @ (width / 2, height / 2)
    (longitude,), (latitude,) = rasterio.warp.transform(place.crs, "EPSG:4326", [x], [y])
    zone = math.floor((longitude + 180) / 6) % 60 + 1
    return f"EPSG:{(32600 if latitude >= 0 else 32700) + zone}"

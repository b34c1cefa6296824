"""Polygon layers over scenes: the area to map, and zones to count in."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.features
import shapely

from d2ls.errors import DataError
from pipeline.prediction.rows import Rows
from sharding.raster.base import Georeference, crs_text
from sharding.raster.polygon_grid import to_pixels
from sharding.raster.vectors import Features, Geometries, project, read_features


@dataclass(frozen=True)
class Layer:
    """Polygons over a scene.

    Attributes:
        name: file and layer, for messages.
        polygons: shapes (N) in the CRS of the scene.
        labels: name of each in tables (N).
        notes: texts on what was repaired, projected or left out.
    """

    name: str
    polygons: Geometries
    labels: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Digest of shapes and names."""
        content = b"".join(shapely.to_wkb(self.polygons)) + "\0".join(self.labels).encode()
        return hashlib.sha256(content).hexdigest()[:32]


def read_layer(
    path: str, scene: str, place: Georeference, size: tuple[int, int], field: str | None = None
) -> Layer:
    """Reads the polygons of a layer that overlap a scene.

    Args:
        path: vector file with one layer.
        scene: name of the scene, for messages.
        place: georeference of the scene.
        size: its rows and columns.
        field: attribute that names the polygons; None: their number, from 1.

    Raises:
        DataError: not readable, geometries other than polygons, no CRS in layer or scene, or no polygon on the scene.
    """
    features = read_features(path, columns=(field,) if field else ())
    _require_polygons(features)
    if not place.placed:
        raise DataError(
            f"{scene}: has no georeference, so {path} cannot be laid over it. Give it one (gdal_translate -a_srs and "
            "-a_ullr, or the georeferencer of QGIS)"
        )
    if not features.crs or not place.crs:
        missing = features.name if not features.crs else scene
        command = (
            f"ogr2ogr -a_srs EPSG:... named.gpkg {path}"
            if not features.crs
            else f"gdal_edit.py -a_srs EPSG:... {scene}"
        )
        raise DataError(
            f"{missing}: names no CRS, so layer and scene cannot be laid over each other. Give it one: {command}"
        )
    numbers = range(1, len(features) + 1)
    labels = (
        [_label(*item) for item in zip(features.fields[field], numbers, strict=True)] if field else numbers
    )
    polygons = project(features.geometries, features.crs, place.crs, features.name)
    notes = list(features.notes)
    if features.crs != place.crs:
        notes.append(f"{path}: projected from {crs_text(features.crs)} to {crs_text(place.crs)}")
    inside = shapely.intersects(to_pixels(polygons, place.transform), shapely.box(0, 0, size[1], size[0]))
    if not inside.any():
        raise DataError(
            f"{features.name}: no polygon reaches into {scene}; is it the right layer, and its CRS right?"
        )
    if not inside.all():
        notes.append(f"{path}: {(~inside).sum()} of {len(inside)} polygons lie outside of the scene")
    kept = tuple(str(label) for label, there in zip(labels, inside, strict=True) if there)
    return Layer(features.name, polygons[inside], kept, tuple(notes))


def _label(name: object, number: int) -> str:
    """Returns the name of a zone; of one without a name, its number."""
    text = "" if name is None else str(name).strip()
    return text or f"number {number}"


def _require_polygons(features: Features) -> None:
    flat = shapely.get_dimensions(features.geometries) < 2
    if flat.any():
        raise DataError(
            f"{features.name}: {flat.sum()} of {len(flat)} geometries are points or lines; give a layer of polygons"
        )


def count_in_zones(
    labels: Rows, polygons: Iterable[shapely.Geometry], transform: rasterio.Affine, width: int
) -> npt.NDArray[np.int64]:
    """Counts pixels by label, in the whole map and in each polygon.

    A pixel lies in a polygon if its centre does; polygons may overlap.

    Args:
        labels: the map.
        polygons: N shapes in its CRS.
        transform: rasterio's Affine from column and row to x and y.
        width: columns of the map.

    Returns:
        N + 1 rows of 256 counts; the first is the whole map.
    """
    shapes = to_pixels(np.array(list(polygons), object), transform)
    bounds = shapely.bounds(shapes).reshape(-1, 4)
    counts = np.zeros((len(shapes) + 1, 256), np.int64)
    for top, block in labels:
        counts[0] += np.bincount(block.ravel(), minlength=256)
        bottom = top + len(block)
        for number in np.flatnonzero((bounds[:, 1] < bottom) & (bounds[:, 3] > top)):
            left = max(int(bounds[number, 0]) - 1, 0)
            right = min(int(np.ceil(bounds[number, 2])) + 1, width)
            if left < right:
                part = block[:, left:right]
                corner = rasterio.Affine.translation(left, top)
                inside = rasterio.features.rasterize([shapes[number]], part.shape, transform=corner) > 0
                counts[number + 1] += np.bincount(part[inside], minlength=256)
    return counts

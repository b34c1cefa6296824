"""Vector files (GeoPackage, GeoJSON, Shapefile, FlatGeobuf): features in and out.

pyogrio reads and writes them through GDAL, shapely holds the geometries, rasterio projects them.
"""

import sqlite3
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyogrio
import rasterio.errors
import rasterio.warp
import shapely
from pyogrio.errors import CRSError, DataLayerError, DataSourceError, FeatureError, FieldError, GeometryError
from rasterio.crs import CRS

from d2ls.errors import DataError
from sharding.raster.qgis import GPKG_VERSION, write_style

VECTOR_SUFFIXES = (".gpkg", ".geojson", ".json", ".shp", ".fgb")

Geometries = npt.NDArray[np.object_]
"""Geometries of shapely, one dimension."""

POLYGONS = ("Polygon", "MultiPolygon")
NULL = "null"
"""Text of an attribute value that is missing."""

_READING = (DataSourceError, DataLayerError, FeatureError, FieldError, GeometryError, CRSError)


@dataclass(frozen=True)
class Features:
    """The features of a layer, cleaned: two-dimensional, valid, none without a geometry.

    Attributes:
        name: file and layer, for messages.
        geometries: their shapes (N).
        crs: rasterio's CRS; None if the file names none.
        fields: attribute name to its values (N).
        notes: texts on what was repaired or dropped.
    """

    name: str
    geometries: Geometries
    crs: Any
    fields: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.geometries)

    def select(self, chosen: npt.NDArray[Any]) -> "Features":
        """Returns some of the features, by a mask or by positions."""
        fields = {name: values[chosen] for name, values in self.fields.items()}
        return replace(self, geometries=self.geometries[chosen], fields=fields)


def read_features(
    path: Path | str,
    *,
    layer: str | None = None,
    columns: Sequence[str] = (),
    crs: str | None = None,
    encoding: str | None = None,
) -> Features:
    """Reads a layer of a vector file.

    Args:
        path: the file, or GDAL's name of a member of an archive (`/vsizip/...`).
        layer: its layer; None: the only one that has geometries.
        columns: attributes to read.
        crs: CRS of a file that names none (`EPSG:25832`).
        encoding: of the texts of a Shapefile that does not state it, or states a wrong one.

    Returns:
        The features. Geometries are made two-dimensional, invalid ones are repaired, empty ones dropped; `notes` counts
        them.

    Raises:
        DataError: not readable, locked, no such layer or attribute, several layers and none chosen, or no feature.
    """
    layer = _layer(path, layer)
    name = f"{path} (layer {layer})"
    empty = f"{name}: the layer has no features. Choose another layer, or save the edits in QGIS"
    with _reading(path) as notes:
        options = {"layer": layer, "encoding": encoding}
        info = pyogrio.read_info(path, **options)
        known = [str(column) for column in info["fields"]]
        if not info["features"]:
            raise DataError(empty)
        for column in columns:
            if column not in known:
                raise DataError(f"{name}: no attribute {column!r}. Attributes: {', '.join(known) or 'none'}")
        meta, _, wkb, values = pyogrio.raw.read(path, columns=list(columns), **options)
    fields = {str(column): data for column, data in zip(meta["fields"], values, strict=True)}
    try:
        geometries = shapely.from_wkb(wkb)
    except shapely.errors.GEOSException as error:
        raise DataError(
            f"{name}: geometries other than polygons, lines and points ({error}). Save them as polygons in QGIS"
        ) from error
    features = Features(name, geometries, _crs(meta["crs"], crs, name), fields)
    features = _cleaned(features)
    if not len(features):
        raise DataError(empty)
    return replace(features, notes=tuple(f"{name}: {note}" for note in (*notes, *features.notes)))


def write_features(
    path: Path,
    layer: str,
    geometries: Geometries,
    fields: Mapping[str, npt.NDArray[Any]],
    crs: Any,
    *,
    geometry_type: str = "Polygon",
    append: bool = False,
    style: str | None = None,
) -> None:
    """Writes features into a layer of a GeoPackage.

    Args:
        path: the file; if it exists, the layer is added to it.
        layer: name of the layer.
        geometries: shapes (N).
        fields: attribute name to values (N).
        crs: as rasterio gives it, or None.
        geometry_type: of the layer: `Polygon`, `MultiPolygon`, `Point`, ...
        append: add to an existing layer.
        style: its default style in QGIS.
    """
    require_plain_name(path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'crs' was not provided")
        pyogrio.raw.write(
            path,
            shapely.to_wkb(geometries),
            [np.asarray(values) for values in fields.values()],
            list(fields),
            layer=layer,
            driver="GPKG",
            geometry_type=geometry_type,
            crs=crs.to_wkt() if crs else None,
            append=append,
            dataset_options=GPKG_VERSION,
        )
    if style:
        write_style(path, layer, style)


def project(geometries: Geometries, source: Any, target: Any, name: str = "geometries") -> Geometries:
    """Projects the vertices of geometries; edges are straight between them, as QGIS and ogr2ogr draw them.

    Args:
        geometries: shapes (N).
        source: their CRS.
        target: the new CRS; shapes are returned unchanged if it is the same, or if one of the two is None.
        name: names them in errors.

    Raises:
        DataError: a vertex cannot be projected to the target.
    """
    if not source or not target or source == target or not len(geometries):
        return geometries

    def moved(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        if not len(points):
            return points
        return np.stack(rasterio.warp.transform(source, target, points[:, 0], points[:, 1]), axis=1)

    try:
        projected = shapely.transform(geometries, moved)
    except Exception as error:  # GDAL's own errors, which rasterio does not turn into its own here
        raise DataError(f"{name}: cannot be projected to {target}: {error}. Correct its CRS") from error
    if not np.isfinite(shapely.bounds(projected)).all():
        raise DataError(
            f"{name}: has vertices without a place in {target}. Clip it: ogr2ogr -clipsrc, or in QGIS"
        )
    return np.asarray(projected)


def value_text(value: Any) -> str:
    """Returns an attribute value as recipes spell it: `3` for 3 and 3.0, `null` for a missing one."""
    if value is None or (isinstance(value, float | np.floating) and np.isnan(value)):
        return NULL
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def polygonal(geometries: Geometries) -> Geometries:
    """Returns the polygons of each geometry, joined into one; an empty collection if there are none."""
    kinds = shapely.get_type_id(geometries)
    mixed = kinds == shapely.GeometryType.GEOMETRYCOLLECTION
    if not mixed.any():
        return geometries
    result = geometries.copy()
    for index in np.flatnonzero(mixed):
        parts = [part for part in shapely.get_parts(geometries[index]) if part.geom_type in POLYGONS]
        result[index] = shapely.union_all(parts)
    return result


def require_plain_name(path: Path | str) -> None:
    """Refuses names that pyogrio would take apart as a URL: it would read or write another file.

    Raises:
        DataError: names the file.
    """
    if not str(path).startswith("/vsi") and any(sign in str(path) for sign in "!;\n\r\t"):
        raise DataError(
            f"{str(path)!r}: a path with ! ; or a line break is not possible for vector files. Rename it"
        )


def _layer(path: Path | str, layer: str | None) -> str:
    """Returns the name of the layer to read."""
    require_plain_name(path)
    _require_unlocked(path)
    with _reading(path):
        layers = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
    if not layers:
        raise DataError(f"{path}: no layer with geometries in it")
    if layer is None and len(layers) > 1:
        raise DataError(
            f"{path}: {len(layers)} layers ({', '.join(layers)}), and none is chosen. Name the `layer` in the recipe, "
            f"or save one as a file: ogr2ogr one.gpkg {path} {layers[0]}"
        )
    if layer is not None and layer not in layers:
        raise DataError(f"{path}: no layer {layer!r}. Layers: {', '.join(layers)}")
    return layer or layers[0]


class _reading:  # noqa: N801  (a context manager, called like a function)
    """Turns errors of pyogrio into ours, and collects its warnings."""

    def __init__(self, path: Path | str) -> None:
        self._path = path
        self._caught = warnings.catch_warnings(record=True)

    def __enter__(self) -> list[str]:
        self._warnings = self._caught.__enter__()
        warnings.simplefilter("always")
        self._notes: list[str] = []
        return self._notes

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._caught.__exit__(None, None, None)
        self._notes += dict.fromkeys(str(warning.message) for warning in self._warnings)
        if isinstance(error, UnicodeDecodeError):
            raise DataError(
                f"{self._path}: texts are not {error.encoding}. Name the `encoding` of the file, for instance cp1252"
            ) from error
        if isinstance(error, _READING):
            text = str(error).split(";")[0].rstrip(".").removeprefix(f"{self._path}: ")
            raise DataError(f"{self._path}: not a readable vector file: {text}") from error


def _require_unlocked(path: Path | str) -> None:
    """Refuses a GeoPackage that another program is writing: GDAL ignores the lock and would read it half written.

    Raises:
        DataError: locked.
    """
    if not str(path).endswith(".gpkg") or not Path(path).is_file():
        return
    try:
        with closing(
            sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True, timeout=5)
        ) as file:
            file.execute("select count(*) from sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise DataError(
                f"{path}: another program is writing to it ({error}). Save the edits and end editing in QGIS, or read "
                "a copy of the file"
            ) from error
    except sqlite3.DatabaseError:
        return  # not a GeoPackage: GDAL's message is better


def _crs(named: Any, given: str | None, name: str) -> Any:
    """Returns the CRS of a file, or the given one if the file has none."""
    try:
        there = CRS.from_user_input(named) if named and "Undefined" not in str(named) else None
        stated = CRS.from_user_input(given) if given else None
    except rasterio.errors.CRSError as error:
        raise DataError(f"{name}: {error}") from error
    if there and stated and there != stated:
        raise DataError(f"{name}: the file is in {there}, and the recipe says {given}. Leave `crs` out")
    return there or stated


def _cleaned(features: Features) -> Features:
    """Drops empty geometries and heights, and repairs invalid ones."""
    notes = []
    there = ~(shapely.is_missing(features.geometries) | shapely.is_empty(features.geometries))
    if not there.all():
        notes.append(f"{(~there).sum()} of {len(there)} features without a geometry left out")
        features = features.select(there)
    if high := int(shapely.has_z(features.geometries).sum()):
        notes.append(f"heights (Z) of {high} features not used")
    shapes = shapely.force_2d(features.geometries)
    invalid = ~shapely.is_valid(shapes)
    if invalid.any():
        reasons = Counter(text.split("[")[0] for text in shapely.is_valid_reason(shapes[invalid]))
        shapes[invalid] = polygonal(
            shapely.make_valid(shapes[invalid], method="structure", keep_collapsed=False)
        )
        text = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        notes.append(f"{invalid.sum()} of {len(shapes)} geometries were invalid ({text}) and were repaired")
    features = replace(features, geometries=shapes)
    there = ~shapely.is_empty(shapes)
    if not there.all():
        notes.append(f"{(~there).sum()} of {len(there)} geometries cover no ground and are left out")
        features = features.select(there)
    return replace(features, notes=tuple(notes))

"""Labels drawn as polygons, lines or points: the classes of their features, and class ids on the grid of an image."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio.warp
import shapely

from d2ls.errors import DataError
from d2ls.labels import IGNORE
from d2ls.window import Window
from sharding.files import FileRef
from sharding.raster.base import Georeference, Raster, crs_text
from sharding.raster.grids import without_datum
from sharding.raster.polygon_grid import PolygonGrid
from sharding.raster.vectors import NULL, POLYGONS, Features, Geometries, project, read_features, value_text

SIDECARS = (".dbf", ".shx", ".prj", ".cpg")
"""Files of a Shapefile beside the .shp."""

SHOWN_VALUES = 8
"""Attribute values written out in a message; the rest is counted."""


@dataclass(frozen=True)
class VectorLayer:
    """A layer of labels, and the class of each of its features.

    Attributes:
        file: the vector file.
        layer: its layer; None: the only one.
        attribute: the attribute that holds the class; None: all features are of the class `only`.
        values: text of an attribute value (see `value_text`) and class id; 255 for values that are ignored.
        only: class id of all features if there is no attribute.
        buffer_m: distance in metres around lines and points that gets their label; None refuses lines and points.
        crs: CRS of a file that names none.
        encoding: of the texts of a Shapefile.
    """

    file: FileRef
    layer: str | None = None
    attribute: str | None = None
    values: tuple[tuple[str, int], ...] = ()
    only: int = IGNORE
    buffer_m: float | None = None
    crs: str | None = None
    encoding: str | None = None


@dataclass(frozen=True)
class VectorLabels:
    """The layers that label images, and how they are drawn.

    Attributes:
        layers: in the order in which they are drawn, later over earlier.
        background: class id of pixels that no feature covers; 255: they are ignored.
        order: class ids in drawing order; empty: the order of the features decides.
        order_by: attribute whose ascending values are the drawing order; empty: none.
        all_touched: a feature labels every pixel that it touches, not only those whose centre it covers.
    """

    layers: tuple[VectorLayer, ...]
    background: int = IGNORE
    order: tuple[int, ...] = ()
    order_by: str = ""
    all_touched: bool = False

    def __str__(self) -> str:
        return ", ".join(str(layer.file) for layer in self.layers)

    @property
    def stamp(self) -> str:
        """Text that changes with the files and rules, but not with the files' paths."""
        rules = asdict(self) | {"layers": [asdict(layer) | {"file": None} for layer in self.layers]}
        return f"{rules} {[_stamp(layer.file) for layer in self.layers]}"


@dataclass(frozen=True)
class LabelFeatures:
    """The features of a layer with their class ids.

    Attributes:
        features: as they are read.
        ids: class id of each (N), uint8.
        order: value of `VectorLabels.order_by` of each (N); None if no attribute decides.
        tree: spatial index.
    """

    features: Features
    ids: npt.NDArray[np.uint8]
    order: npt.NDArray[Any] | None
    tree: Any


def read_layers(labels: VectorLabels) -> tuple[LabelFeatures, ...]:
    """Reads all layers, and keeps them for the next image.

    Raises:
        DataError: a file that cannot be read, a value that is not listed, or lines or points without a `buffer_m`.
    """
    return _read_layers(labels, labels.stamp)


@lru_cache(maxsize=2)
def _read_layers(labels: VectorLabels, stamp: str) -> tuple[LabelFeatures, ...]:
    return tuple(_read(layer, labels.order_by) for layer in labels.layers)


class VectorGrid:
    """Class ids of vector labels on the grid of an image.

    Attributes:
        size: rows and columns of the image.
        features: number of features that reach into the image.
        reached: name of each layer, and whether one of its features reaches into the image.
        notes: texts on what was repaired, left out or projected.
    """

    def __init__(
        self, labels: VectorLabels, image: FileRef, place: Georeference, size: tuple[int, int]
    ) -> None:
        self.size = size
        notes: list[str] = []
        shapes, ids, order = [], [], []
        self.reached: dict[str, bool] = {}
        for layer, read in zip(labels.layers, read_layers(labels), strict=True):
            notes += [*read.features.notes, *_require_common_place(read.features, image, place)]
            near = _near(read, place, *size, layer.buffer_m or 0.0)
            self.reached[read.features.name] = bool(len(near))
            moved = project(read.features.geometries[near], read.features.crs, place.crs, read.features.name)
            shapes.append(_buffered(moved, layer.buffer_m, place, *size))
            ids.append(read.ids[near])
            order.append(read.order[near] if read.order is not None else None)
        self.notes = tuple(notes)
        drawn = _drawing_order(labels, np.concatenate(ids), order)
        self._grid = PolygonGrid(
            np.concatenate(shapes)[drawn],
            np.concatenate(ids)[drawn],
            place.transform,
            *size,
            fill=labels.background,
            all_touched=labels.all_touched,
        )
        self.features = self._grid.count

    def read(self, area: Window) -> npt.NDArray[np.uint8]:
        """Returns the class ids of a window of the image (h w)."""
        return self._grid.read(area)

    def raw(self, area: Window) -> npt.NDArray[np.uint8]:
        """Returns nothing: vector labels have no raw codes to count."""
        return np.empty((0, 0), np.uint8)


def vector_grid(labels: VectorLabels, image: Raster) -> VectorGrid:
    """Places vector labels on the grid of an open image; the result is kept for the next piece of the same image.

    Raises:
        DataError: see `read_layers`; or the labels cannot be placed on the image.
    """
    size = (image.info.height, image.info.width)
    return _vector_grid(labels, labels.stamp, image.ref, image.georeference, size)


@lru_cache(maxsize=2)
def _vector_grid(
    labels: VectorLabels, stamp: str, image: FileRef, place: Georeference, size: tuple[int, int]
) -> VectorGrid:
    return VectorGrid(labels, image, place, size)


def differ_in_datum(first: Any, second: Any) -> bool:
    """Returns whether two CRS differ only in their datum."""
    return first != second and without_datum(first) == without_datum(second)


def _read(layer: VectorLayer, order_by: str) -> LabelFeatures:
    columns = dict.fromkeys(name for name in (layer.attribute, order_by) if name)
    features = read_features(
        layer.file.gdal, layer=layer.layer, columns=list(columns), crs=layer.crs, encoding=layer.encoding
    )
    ids = _class_ids(features, layer)
    if (shapely.get_type_id(features.geometries) == shapely.GeometryType.GEOMETRYCOLLECTION).any():
        parts, owners = shapely.get_parts(features.geometries, return_index=True)
        features, ids = replace(features.select(owners), geometries=parts), ids[owners]
    _require_area(features, layer)
    order = features.fields[order_by] if order_by else None
    return LabelFeatures(features, ids, order, shapely.STRtree(features.geometries))


def _class_ids(features: Features, layer: VectorLayer) -> npt.NDArray[np.uint8]:
    """Looks up the class of each feature.

    Raises:
        DataError: values that are not listed, with their counts.
    """
    if layer.attribute is None:
        return np.full(len(features), layer.only, np.uint8)
    classes = dict(layer.values)
    texts = [value_text(value) for value in features.fields[layer.attribute]]
    unlisted = Counter(text for text in texts if text not in classes)
    if unlisted:
        shown = ", ".join(f"{text!r} ({count})" for text, count in unlisted.most_common(SHOWN_VALUES))
        more = f" and {len(unlisted) - SHOWN_VALUES} more values" if len(unlisted) > SHOWN_VALUES else ""
        raise DataError(
            f"{features.name}: values of {layer.attribute!r} that data.custom.vectors does not list, with the count of "
            f"features: {shown}{more}. Listed: {', '.join(map(repr, classes))}. Add them to a class in `values`, or to "
            "`ignored`" + _encoding_advice(unlisted, layer)
        )
    return np.array([classes[text] for text in texts], np.uint8)


def _encoding_advice(texts: Iterable[str], layer: VectorLayer) -> str:
    if layer.encoding or layer.file.suffix != ".shp" or all(text.isascii() for text in texts):
        return ""
    return ". If letters look wrong, name the `encoding` of the Shapefile, for instance UTF-8 or cp1252"


def _require_area(features: Features, layer: VectorLayer) -> None:
    """Refuses lines and points without a buffer."""
    counts = Counter(shape.geom_type for shape in features.geometries if shape.geom_type not in POLYGONS)
    if counts and layer.buffer_m is None:
        shown = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise DataError(
            f"{features.name}: geometries without an area ({shown}). Say with `buffer_m` how many metres around them "
            "they label, or take them out of the layer"
        )


def _require_common_place(features: Features, image: FileRef, place: Georeference) -> list[str]:
    """Compares the CRS of a layer and of an image; returns notes.

    Raises:
        DataError: the image is not georeferenced, or one of the two has no CRS.
    """
    if not place.placed:
        raise DataError(
            f"{image}: the image has no georeference, so {features.name} cannot be laid over it. Give it one "
            "(gdal_translate -a_srs and -a_ullr, or the georeferencer of QGIS), or label it by an image"
        )
    if bool(features.crs) != bool(place.crs):
        if place.crs:
            raise DataError(
                f"{features.name}: the layer names no CRS. Say it with `crs` in data.custom.vectors, for instance "
                f"crs: {crs_text(place.crs)}"
            )
        raise DataError(
            f"{image}: the image names no CRS, {features.name} is in {crs_text(features.crs)}. Write it into the "
            f"image: gdal_edit.py -a_srs EPSG:... {image}"
        )
    if not features.crs:
        return [
            f"{features.name}: neither the layer nor the image names a CRS; their coordinates are taken as one"
        ]
    if features.crs == place.crs:
        return []
    datum = ", which differ in the datum only" if differ_in_datum(features.crs, place.crs) else ""
    return [
        f"{features.name}: projected from {crs_text(features.crs)} to {crs_text(place.crs)} of the image{datum}"
    ]


def _near(
    layer: LabelFeatures, place: Georeference, height: int, width: int, buffer_m: float
) -> npt.NDArray[np.intp]:
    """Returns the positions of features that may reach into an image, in order."""
    corners = [place.transform @ corner for corner in ((0, 0), (width, 0), (0, height), (width, height))]
    xs, ys = zip(*corners, strict=True)
    across, up = place.metres_per_unit(height, width)
    west, east = min(xs) - buffer_m / across, max(xs) + buffer_m / across
    south, north = min(ys) - buffer_m / up, max(ys) + buffer_m / up
    box = (west, south, east, north)
    if layer.features.crs and place.crs and layer.features.crs != place.crs:
        try:
            box = rasterio.warp.transform_bounds(place.crs, layer.features.crs, *box)
        except Exception as error:  # GDAL's own errors, which rasterio does not turn into its own here
            raise DataError(
                f"{layer.features.name}: cannot be projected to {crs_text(place.crs)}: {error}"
            ) from error
        west, south, east, north = box
        if east < west:  # across the 180th meridian
            boxes = [shapely.box(west, south, 180, north), shapely.box(-180, south, east, north)]
            return np.unique(layer.tree.query(boxes)[1])
    return np.sort(layer.tree.query(shapely.box(*box)))


def _buffered(
    shapes: Geometries, buffer_m: float | None, place: Georeference, height: int, width: int
) -> Geometries:
    """Turns lines and points into polygons, in the CRS of the image."""
    flat = shapely.get_dimensions(shapes) < 2
    if not flat.any() or buffer_m is None:
        return shapes
    scale = np.array(place.metres_per_unit(height, width))
    metres = shapely.transform(shapes[flat], lambda points: points * scale)
    result = shapes.copy()
    result[flat] = shapely.transform(shapely.buffer(metres, buffer_m), lambda points: points / scale)
    return result


def _drawing_order(
    labels: VectorLabels, ids: npt.NDArray[np.uint8], order: list[npt.NDArray[Any] | None]
) -> npt.NDArray[np.intp]:
    """Returns the positions of features in the order in which they are drawn; ties keep the order of the files."""
    if labels.order:
        ranks = np.full(256, len(labels.order))  # ignored features are drawn last, over all classes
        ranks[list(labels.order)] = np.arange(len(labels.order))
        return np.argsort(ranks[ids], kind="stable")
    if not labels.order_by:
        return np.arange(len(ids))
    values = [value for part in order if part is not None for value in part.tolist()]
    keys = [_sort_key(value) for value in values]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), np.intp)


def _sort_key(value: Any) -> tuple[int, float, str]:
    """Sorts missing values first, then numbers, then texts."""
    if value_text(value) == NULL:
        return 0, 0.0, ""
    return (1, float(value), "") if isinstance(value, int | float) else (2, 0.0, str(value))


def _stamp(file: FileRef) -> str:
    """Returns the state of a file and of its companion files."""
    if file.member:
        return file.stamp
    path = Path(file.path)
    beside = [path.with_suffix(suffix) for suffix in SIDECARS] if file.suffix == ".shp" else []
    beside.append(
        path.with_name(f"{path.name}-wal")
    )  # edits that QGIS has saved, and SQLite not yet written back
    states = [f"{state.st_size}-{state.st_mtime_ns}" for state in (p.stat() for p in beside if p.is_file())]
    return " ".join([file.stamp, *states])

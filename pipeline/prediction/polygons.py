"""Writes the polygons of a label map as a GeoPackage, which QGIS opens with colours and class names."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyogrio
import shapely

from d2ls.errors import ConfigError, StorageError
from d2ls.labels import ClassTable
from pipeline.prediction.ground import GroundArea
from pipeline.prediction.map_writer import PROBABILITY_STEPS
from pipeline.prediction.polygonize import Nodes, Polygons, Strip, polygonize, simplified
from pipeline.prediction.request import PolygonOptions
from sharding.raster.qgis import GPKG_VERSION, polygon_style, write_style

LAYER = "classes"
_FIELDS = [
    pa.field("geometry", pa.binary()),
    pa.field("class", pa.string()),
    pa.field("class_id", pa.int32()),
    pa.field("area_m2", pa.float64()),
    pa.field("mean_probability", pa.float64()),
]


def write_polygons(
    target: Path,
    strips: Iterable[Strip],
    size: tuple[int, int],
    ground: GroundArea,
    classes: ClassTable,
    options: PolygonOptions,
    *,
    tags: Mapping[str, str],
    workspace: Path | None = None,
) -> int:
    """Writes the polygons of a map into layer `classes` of a GeoPackage, and their style into the same file.

    Args:
        target: local file; replaced where it exists.
        strips: labels and confidence steps, from the top down.
        size: rows and columns of the map.
        ground: its georeference.
        classes: names and colours.
        options: classes and smoothing.
        tags: metadata of the file.
        workspace: folder on the same disk for the unfinished file; None: beside the target.

    Returns:
        Number of polygons.

    Raises:
        StorageError: it cannot be written; nothing is left behind.
    """
    chosen = chosen_classes(options, classes)
    if options.simplify_m is None:
        batches: Iterable[Polygons] = polygonize(strips, chosen)
    else:
        nodes = Nodes(*size)
        tolerance = options.simplify_m / ground.square_metres**0.5
        batches = [simplified(polygonize(nodes.watch(strips), chosen), nodes, tolerance, str(target))]
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = (workspace or target.parent) / f".{target.stem}.{os.getpid()}.tmp.gpkg"
    stream = _Stream(batches, ground, classes)
    try:
        _write(partial, stream, ground, tags)
        names, palette = [classes.names[i] for i in chosen], [classes.palette[i] for i in chosen]
        write_style(partial, LAYER, polygon_style(names, palette))
        partial.replace(target)
    except Exception as error:
        if stream.error is not None:
            raise stream.error from None
        if not isinstance(error, OSError | pyogrio.errors.DataSourceError | pyogrio.errors.DataLayerError):
            raise
        raise StorageError(f"{target}: cannot be written: {error}") from error
    finally:
        for leftover in partial.parent.glob(f"{partial.name}*"):  # SQLite's journal too
            leftover.unlink(missing_ok=True)
    return stream.count


def chosen_classes(options: PolygonOptions, classes: ClassTable) -> list[int]:
    """Returns the ids of the classes to outline.

    Raises:
        ConfigError: the model has no such class.
    """
    if not options.classes:
        return list(range(classes.num_classes))
    for name in options.classes:
        if name not in classes.names:
            raise ConfigError(f"--polygon-classes {name}: the model knows {', '.join(classes.names)}")
    return [classes.names.index(name) for name in options.classes]


class _Stream:
    """Batches of polygons as Arrow record batches. Stores an error, of which Arrow would pass only the text."""

    def __init__(self, batches: Iterable[Polygons], ground: GroundArea, classes: ClassTable) -> None:
        self._batches, self._ground, self._classes = batches, ground, classes
        self.count = 0
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[Any]:
        try:
            for batch in self._batches:
                if len(batch.geometries):
                    self.count += len(batch.geometries)
                    yield self._record(batch)
        except Exception as error:
            self.error = error
            raise

    def _record(self, batch: Polygons) -> Any:
        names = np.array(self._classes.names, object)[batch.class_ids]
        columns = [
            shapely.to_wkb(shapely.orient_polygons(shapely.transform(batch.geometries, self._place))),
            names,
            batch.class_ids.astype(np.int32),
            shapely.area(batch.geometries) * self._ground.square_metres,
            batch.steps / batch.pixels / PROBABILITY_STEPS,
        ]
        arrays = [pa.array(values, field.type) for values, field in zip(columns, _FIELDS, strict=True)]
        return pa.record_batch(arrays, pa.schema(_FIELDS))

    def _place(self, points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        transform = self._ground.transform
        x, y = points[:, 0], points[:, 1]
        columns = (
            transform.c + x * transform.a + y * transform.b,
            transform.f + x * transform.d + y * transform.e,
        )
        return np.stack(columns, axis=1)


def _write(path: Path, stream: _Stream, ground: GroundArea, tags: Mapping[str, str]) -> None:
    reader = pa.RecordBatchReader.from_batches(pa.schema(_FIELDS), iter(stream))
    pyogrio.write_arrow(
        reader, path, layer=LAYER, driver="GPKG", geometry_name="geometry", geometry_type="Polygon",
        crs=ground.crs.to_wkt(), dataset_metadata=dict(tags),
        dataset_options=GPKG_VERSION,
    )  # fmt: skip

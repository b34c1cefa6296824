"""Writes all files of a map from its finished rows."""

import json
import math
from collections.abc import Collection
from pathlib import Path

import numpy as np
import numpy.typing as npt

from d2ls import storage
from d2ls.bundle import ModelInfo
from pipeline.prediction.areas import AreaTable, csv_digest
from pipeline.prediction.layers import count_in_zones
from pipeline.prediction.map_writer import Layout, write_labels, write_steps
from pipeline.prediction.outputs import Outputs
from pipeline.prediction.overlay import write_overlay
from pipeline.prediction.parts import Parts
from pipeline.prediction.plan import ScenePlan
from pipeline.prediction.polygons import write_polygons
from pipeline.prediction.request import MapOptions, PolygonOptions
from pipeline.prediction.rows import Rows, resampled, sieved, strips, whole
from pipeline.prediction.tags import MAP_TAG, TABLE_TAG, comment
from sharding.raster.qgis import raster_style
from sharding.raster.scene import Scene


class Products:
    """Writes the files of a map.

    Args:
        info: the model.
        scene: the scene, for the picture.
        plan: plan of the map.
        options: how to map.
        parts: its rows, all finished.
        workspace: folder for unfinished files, on the same disk.
    """

    def __init__(
        self,
        info: ModelInfo,
        scene: Scene,
        plan: ScenePlan,
        options: MapOptions,
        parts: Parts,
        workspace: Path,
    ) -> None:
        self.info, self.scene, self.plan, self.options = info, scene, plan, options
        self.parts, self.workspace = parts, workspace
        self.size = (plan.height, plan.width)
        self._sieved: npt.NDArray[np.uint8] | None = None

    def write(self, outputs: Outputs, finished: Collection[str] = ()) -> tuple[int, ...]:
        """Writes the files that are not finished; returns the number of pixels of each class.

        The last entry is the number of pixels without data.

        Raises:
            StorageError: a file cannot be written.
        """
        area, ground = self.options.min_area_m2, self.plan.ground
        min_pixels = 0 if area is None or ground is None else math.ceil(area / ground.square_metres - 1e-6)
        if min_pixels <= 1:
            return self._write(outputs, finished)
        with sieved(self._rows("labels"), self.size, min_pixels, self.workspace) as self._sieved:
            return self._write(outputs, finished)

    def _write(self, outputs: Outputs, finished: Collection[str]) -> tuple[int, ...]:
        classes, how = self.info.classes, self.plan.provenance.to_json()
        about = json.dumps(
            {**self.info.dataset, **{key: str(value) for key, value in self.info.extra.items()}}
        )
        layout = Layout(*self.size, self.scene.georeference, {MAP_TAG: how, "model": about})
        todo = set(outputs.files) - set(finished)
        if (target := outputs.beside("probabilities.tif")) in todo:
            self._write_steps(target, "probabilities", layout, classes.names)
        if (target := outputs.beside("confidence.tif")) in todo:
            self._write_steps(target, "confidence", layout, ["probability of the class"])
        if (target := outputs.beside("overlay.jpg")) in todo:
            write_overlay(
                Path(target), self.scene, self.plan.bands, self.labels(), classes, how, self.workspace
            )
        if (target := outputs.beside("qml")) in todo:
            style = raster_style(classes.names, classes.palette, comment(how))
            storage.write_bytes(target, style.encode())
        counts = self._write_areas(outputs, todo, how)
        if outputs.polygons in todo:
            self._write_polygons(outputs, layout)
        # The map comes last: it marks all files as finished.
        if outputs.target in todo:
            write_labels(Path(outputs.target), self.labels(), layout, classes, workspace=self.workspace)
        return (*counts[: classes.num_classes].tolist(), int(counts[255]))

    def labels(self) -> Rows:
        """Yields the label map on the grid of the scene, with small parts removed."""
        return self._rows("labels") if self._sieved is None else whole(self._sieved)

    def _rows(self, kind: str) -> Rows:
        return resampled(self.parts.rows(kind), self.plan.grid_size, self.size)

    def _write_steps(
        self, target: str, kind: str, layout: Layout, names: "tuple[str, ...] | list[str]"
    ) -> None:
        write_steps(Path(target), self._rows(kind), layout, names, workspace=self.workspace)

    def _write_areas(self, outputs: Outputs, todo: Collection[str], how: str) -> npt.NDArray[np.int64]:
        """Counts pixels by class; writes the tables if requested."""
        zones, ground = self.plan.zones, self.plan.ground
        polygons = () if zones is None else zones.polygons
        transform = self.scene.georeference.transform
        counts = count_in_zones(self.labels(), polygons, transform, self.plan.width)
        if ground is not None and {outputs.beside("areas.md"), outputs.beside("areas.csv")} & set(todo):
            names = ("", *(zones.labels if zones is not None else ()))
            table = AreaTable(names, counts, self.info.classes, ground.hectares, self.plan.confusion)
            content = table.to_csv()
            text = table.to_markdown(
                Path(outputs.target).name, comment(how, **{TABLE_TAG: csv_digest(content)})
            )
            # The Markdown file comes first: it identifies the table as ours.
            storage.write_bytes(outputs.beside("areas.md"), text.encode())
            storage.write_bytes(outputs.beside("areas.csv"), content)
        return counts[0]

    def _write_polygons(self, outputs: Outputs, layout: Layout) -> None:
        if outputs.polygons is None or self.plan.ground is None:
            return
        pairs = strips(self.labels(), self._rows("confidence"), self.plan.width)
        write_polygons(
            Path(outputs.polygons), pairs, self.size, self.plan.ground, self.info.classes,
            self.options.polygons or PolygonOptions(), tags=layout.tags, workspace=self.workspace,
        )  # fmt: skip

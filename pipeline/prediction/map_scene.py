"""Maps one scene, window by window; an interrupted map is continued."""

import contextlib
import json
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine

from d2ls import storage
from d2ls.errors import DataError, StorageError
from d2ls.inference import Band, Grid, Predictor, Progress, overlap_pixels, stitch
from d2ls.scratch import scratch_folder
from d2ls.window import Window
from pipeline.prediction.map_writer import aux_file, quantize
from pipeline.prediction.outputs import Outputs, hold
from pipeline.prediction.parts import Parts
from pipeline.prediction.plan import ScenePlan, check_disk, plan_scene
from pipeline.prediction.preprocessing import plan_scaling
from pipeline.prediction.products import Products
from pipeline.prediction.request import MapOptions, WindowPlan
from sharding.raster.base import Reading
from sharding.raster.gdal import GDAL_SUFFIXES
from sharding.raster.polygon_grid import PolygonGrid
from sharding.raster.reader import PLAIN
from sharding.raster.scene import Scene, open_scene

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True)
class MapReport:
    """Report on the map of a scene.

    Attributes:
        source: the scene.
        target: the map.
        height: rows of the map.
        width: columns.
        seconds: wall time.
        notes: choices and warnings for the user.
        skipped: whether the map was finished before.
        pixels: number of pixels of each class; the last entry is for those without data.
    """

    source: str
    target: str
    height: int
    width: int
    seconds: float
    notes: tuple[str, ...] = ()
    skipped: bool = False
    pixels: tuple[int, ...] = ()


def map_scene(
    predictor: Predictor,
    source: str,
    target: str,
    options: MapOptions,
    *,
    digest: str,
    owner: str = "",
    progress: Callable[[Progress], None] = lambda _: None,
) -> MapReport:
    """Maps a scene.

    Args:
        predictor: the model.
        source: image, local or by URI.
        target: location of the map, `.tif` or `.png`, local or by URI.
        options: how to map.
        digest: digest of the model's files; parts of another model are never continued.
        owner: name of the run, see `outputs.hold`.
        progress: called as windows are done.

    Raises:
        ConfigError: another file is in the place of the map, or the scene is too large, see `plan_scene`.
        DataError: the scene is missing or damaged, has other bands or another type, or has changed meanwhile.
        StorageError: the map cannot be written, or another process is writing it.
    """
    started = time.monotonic()
    with read_scene(source, options.reading(predictor.info)) as scene:
        look = WindowPlan.of(predictor)
        plan = plan_scene(scene, source, target, predictor.info, look, options, digest)
        report = MapReport(source, target, scene.height, scene.width, 0.0, plan.notes)
        if plan.finished:
            return replace(report, skipped=True)
        with hold(plan.outputs, owner=owner) as renew:

            def on_progress(state: Progress) -> None:
                renew()
                progress(state)

            pixels = _Job(predictor, scene, plan, options).run(on_progress)
    return replace(report, seconds=time.monotonic() - started, pixels=pixels)


@contextlib.contextmanager
def read_scene(source: str, reading: Reading = PLAIN) -> Iterator[Scene]:
    """Opens a scene in place; from an object store, formats that are decoded whole are copied first.

    Args:
        source: image, local or by URI.
        reading: settings that the file does not state.

    Raises:
        DataError: missing or unreadable.
    """
    if storage.is_local(source):
        with open_scene(storage.local_path(source), reading) as scene:
            yield scene
        return
    if Path(source).suffix.lower() in GDAL_SUFFIXES and reading.page is None:
        with open_scene(source, reading) as scene:
            yield scene
        return
    with scratch_folder("map") as folder:
        check_disk(storage.info(source).size or 0, str(folder))
        local = _fetch(source, folder)
        try:
            with open_scene(local, reading) as scene:
                scene.name = source
                yield scene
        except DataError as error:
            raise DataError(str(error).replace(str(local), source)) from error


def _fetch(source: str, folder: Path) -> Path:
    """Copies a scene and the files with its georeference.

    Raises:
        DataError: there is no such scene, or it cannot be read.
    """
    stem = source.rpartition(".")[0]
    kind = Path(source).suffix[1:].lower()
    beside = (f"{stem}.{kind[0]}{kind[-1]}w", f"{stem}.{kind}w", f"{stem}.wld", f"{source}.aux.xml")
    try:
        storage.download(source, folder / Path(source).name)
        for uri in beside:
            if storage.exists(uri):
                storage.download(uri, folder / Path(uri).name)
    except StorageError as error:
        raise DataError(f"{source}: cannot be read: {error}") from error
    return folder / Path(source).name


class _Job:
    """The work on one scene. Only this process does it."""

    def __init__(self, predictor: Predictor, scene: Scene, plan: ScenePlan, options: MapOptions) -> None:
        self.predictor, self.scene, self.plan, self.options = predictor, scene, plan, options
        self.grid = Grid(
            *plan.grid_size, predictor.window, overlap_pixels(predictor.window, predictor.overlap)
        )

    def run(self, progress: Callable[[Progress], Any]) -> tuple[int, ...]:
        """Predicts the missing windows, writes the files, and returns pixels by class."""
        parts = self._parts()
        finished = parts.finished()
        if finished < len(self.grid.rows):
            stitch(
                self._reader(), self.predictor.window_probabilities, self._writer(parts),
                self.grid, self.predictor.num_classes, batch_size=self.predictor.batch_size, first_band=finished,
                keep_probabilities=self.options.needs_probabilities, temperature=self.predictor.temperature,
                progress=progress,
            )  # fmt: skip
        self._check_unchanged()
        pixels = self._write(parts)
        parts.remove()
        return pixels

    def _check_unchanged(self) -> None:
        """Checks that the scene did not change while it was mapped.

        Raises:
            DataError: the scene changed or was deleted.
        """
        source = self.plan.source
        try:
            same = storage.fingerprint(source) == self.plan.provenance.file_stamp
        except StorageError as error:
            raise DataError(
                f"{source}: was deleted while it was being mapped; put it back and start again"
            ) from error
        if not same:
            raise DataError(f"{source}: changed while it was being mapped; start again")

    def _parts(self) -> Parts:
        kinds = {"labels": 1} | (
            {"probabilities": self.predictor.num_classes} if self.options.probabilities else {}
        )
        kinds |= {"confidence": 1} if self.options.needs_confidence else {}
        bands = [self.grid.band(index) for index in range(len(self.grid.rows))]
        how = json.loads(replace(self.plan.provenance, place="").to_json())
        parts = Parts(self.plan.outputs.parts, how, kinds, self.grid.width, bands)
        if self.options.overwrite:
            parts.remove()
        return parts

    def _reader(self) -> Any:
        scene, plan = self.scene, self.plan
        scale = plan_scaling(self.predictor, self.options.scale_range)
        area = self._area()

        def read(window: Window) -> tuple["npt.NDArray[Any]", "npt.NDArray[np.bool_] | None"]:
            inside = area.read(window) > 0 if area is not None else None
            if inside is not None and not inside.any():
                shape = (window.height, window.width, len(plan.bands))
                return np.zeros(shape, self.predictor.info.dtype), inside
            rows, columns = ((part.start, part.stop) for part in window.slices)
            pixels, valid = scene.read(rows, columns, plan.bands, plan.size)
            if inside is not None:
                valid = inside if valid is None else valid & inside
            return scale(pixels), valid

        return read

    def _area(self) -> PolygonGrid | None:
        """Returns the area to map, on the grid of the windows; None: everywhere."""
        if self.plan.area is None:
            return None
        polygons, (height, width) = self.plan.area.polygons, self.plan.grid_size
        scale = Affine.scale(self.scene.width / width, self.scene.height / height)
        ones = np.ones(len(polygons), np.uint8)
        transform = self.scene.georeference.transform @ scale
        return PolygonGrid(polygons, ones, transform, height, width, fill=0)

    def _writer(self, parts: Parts) -> Callable[[Band], None]:
        def write(band: Band) -> None:
            rasters = {"labels": band.labels}
            if band.probabilities is not None and self.options.probabilities:
                rasters["probabilities"] = quantize(band.probabilities, band.labels)
            if band.probabilities is not None and self.options.needs_confidence:
                rasters["confidence"] = quantize(band.probabilities.max(axis=0), band.labels)
            parts.write(band.index, **rasters)

        return write

    def _write(self, parts: Parts) -> tuple[int, ...]:
        """Writes the files in place, or for an object store on this machine's disk first."""
        outputs = self.plan.outputs
        # A file may have been put there in the meantime.
        outputs.check(self.plan.provenance, overwrite=self.options.overwrite)
        finished = outputs.finished(self.plan.provenance, overwrite=self.options.overwrite)
        if storage.is_local(outputs.target):
            local = outputs.moved(str(storage.local_path(outputs.target)))
            return self._products(parts, local, finished, Path(local.parts))
        with scratch_folder("map") as folder:
            check_disk(self.plan.disk, str(folder))
            local = outputs.moved(str(folder / Path(outputs.target).name))
            pixels = self._products(parts, local, finished, folder)
            aux = aux_file(Path(local.target))
            if aux.exists():
                storage.upload(aux, f"{outputs.target}.aux.xml")
            for source, target in zip(local.files, outputs.files, strict=True):
                if target not in finished:
                    storage.upload(Path(source), target)
            return pixels

    def _products(
        self, parts: Parts, outputs: Outputs, finished: Collection[str], workspace: Path
    ) -> tuple[int, ...]:
        products = Products(self.predictor.info, self.scene, self.plan, self.options, parts, workspace)
        pairs = zip(outputs.files, self.plan.outputs.files, strict=True)
        return products.write(outputs, [local for local, target in pairs if target in finished])

"""One scene to one label map, window by window, and on after a kill."""

import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from d2ls import storage
from d2ls.errors import DataError
from d2ls.inference import Band, Grid, Progress, Segmenter, overlap_pixels, stitch
from pipeline.prediction.fit import choose_bands, plan_grid, plan_stretch
from pipeline.prediction.map_writer import (
    Layout,
    aux_file,
    quantize,
    read_tags,
    write_labels,
    write_probabilities,
)
from pipeline.prediction.parts import Parts, Rows
from sharding.raster.scene import Scene, Span, open_scene

if TYPE_CHECKING:
    import numpy.typing as npt

PLAN_TAG = "d2ls_plan"


@dataclass(frozen=True)
class MapOptions:
    """How scenes are mapped.

    Attributes:
        bands: numbers of the file's bands, from 1, in the order of the model's; None chooses by count or name.
        stretch: file values that stand for 0 and for the model's highest value; None takes pixels as they are.
        resample: bring scenes to the ground distance of the training first; the map is on the scene's own grid.
        probabilities: also write the class probabilities.
        overlay: also write a picture of the map over the image.
        overwrite: map again what is finished.
    """

    bands: tuple[int, ...] | None = None
    stretch: tuple[float, float] | None = None
    resample: bool = False
    probabilities: bool = False
    overlay: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class MapReport:
    """What was made of a scene.

    Attributes:
        source: the scene.
        target: the map.
        height: rows of the map.
        width: columns.
        seconds: wall time.
        notes: choices and warnings a person should see.
        skipped: whether it was finished before.
        pixels: number of pixels of each class, and last of those without data.
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
    segmenter: Segmenter,
    source: str,
    target: str,
    options: MapOptions,
    *,
    digest: str,
    progress: Callable[[Progress], None] = lambda _: None,
) -> MapReport:
    """Maps a scene.

    Args:
        segmenter: the model.
        source: image, local or by URI.
        target: where the map goes, `.tif` or `.png`, local or by URI.
        options: see there.
        digest: of the model's files; another model never goes on with old parts.
        progress: told as windows are done.

    Raises:
        DataError: the scene is missing, damaged, of other bands or another type, or changed meanwhile.
        StorageError: the map cannot be written.
    """
    if storage.is_local(source) and storage.is_local(target):
        job = _Job(segmenter, storage.local_path(source), storage.local_path(target), target, source, options)
        return job.run(digest, progress)
    with tempfile.TemporaryDirectory(prefix="d2ls-map-") as folder:
        local_source, local_target = (
            Path(folder, "source", Path(source).name),
            Path(folder, Path(target).name),
        )
        local_source.parent.mkdir()
        local_source.write_bytes(storage.read_bytes(source))
        report = _Job(segmenter, local_source, local_target, target, source, options).run(digest, progress)
        for file in sorted(Path(folder).glob("*.*")):
            storage.upload(file, storage.join(target.rsplit("/", 1)[0], file.name))
        return report


@dataclass
class _Job:
    segmenter: Segmenter
    source: Path
    target: Path
    target_uri: str
    source_uri: str
    options: MapOptions

    def run(self, digest: str, progress: Callable[[Progress], None]) -> MapReport:
        started = time.monotonic()
        with open_scene(self.source) as scene:
            before = self._stamp()
            bands, note = choose_bands(scene, self.segmenter.info, self.options.bands)
            size, warning = plan_grid(scene, self.segmenter, self.options.resample)
            notes = tuple(text for text in (note, warning) if text)
            report = MapReport(self.source_uri, self.target_uri, scene.height, scene.width, 0.0, notes)
            plan = self._plan(scene, bands, size, digest, before)
            tag = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
            if not self.options.overwrite and self._is_finished(tag):
                return replace(report, skipped=True)
            grid = self._grid(size or (scene.height, scene.width))
            read, parts = self._reader(scene, bands, size), self._parts(plan, grid)
            stitch(
                read, self.segmenter.window_probabilities, self._writer(parts),
                grid, self.segmenter.num_classes, batch_size=self.segmenter.batch_size,
                first_band=parts.finished(), keep_probabilities=self.options.probabilities, progress=progress,
            )  # fmt: skip
            if self._stamp() != before:
                raise DataError(f"{self.source_uri}: the file changed or vanished while it was being mapped")
            pixels = self._assemble(scene, bands, parts, grid, tag)
            parts.remove()
        return replace(report, seconds=time.monotonic() - started, pixels=pixels)

    def _grid(self, size: tuple[int, int]) -> Grid:
        window = self.segmenter.window
        return Grid(*size, window, overlap_pixels(window, self.segmenter.overlap))

    def _stamp(self) -> str:
        try:
            status = self.source.stat()
        except OSError as error:
            raise DataError(f"{self.source_uri}: vanished while it was being mapped") from error
        return f"{status.st_size}-{status.st_mtime_ns}"

    def _plan(
        self, scene: Scene, bands: tuple[int, ...], size: tuple[int, int] | None, digest: str, stamp: str
    ) -> dict[str, Any]:
        """Everything that decides about the values of the map."""
        segmenter = self.segmenter
        return {
            "source": self.source_uri, "stamp": stamp if storage.is_local(self.source_uri) else "",
            "height": scene.height, "width": scene.width, "bands": bands, "size": size, "model": digest,
            "window": segmenter.window, "overlap": segmenter.overlap,
            "views": [asdict(view) for view in segmenter.views], "stretch": self.options.stretch,
        }  # fmt: skip

    def _parts(self, plan: dict[str, Any], grid: Grid) -> Parts:
        kinds = {"labels": 1} | (
            {"probabilities": self.segmenter.num_classes} if self.options.probabilities else {}
        )
        bands = [grid.band(index) for index in range(len(grid.rows))]
        uri = storage.join(self.target_uri + ".parts")
        if self.options.overwrite:
            storage.delete(uri)
        return Parts(uri, plan, kinds, grid.width, bands)

    def _reader(self, scene: Scene, bands: tuple[int, ...], size: tuple[int, int] | None) -> Any:
        stretch = plan_stretch(scene, self.segmenter, self.options.stretch)

        def read(rows: Span, columns: Span) -> tuple["npt.NDArray[Any]", "npt.NDArray[np.bool_] | None"]:
            pixels, valid = scene.read(rows, columns, bands, size)
            return stretch(pixels), valid

        return read

    def _writer(self, parts: Parts) -> Callable[[Band], None]:
        def write(band: Band) -> None:
            rasters = {"labels": band.labels}
            if band.probabilities is not None:
                rasters["probabilities"] = quantize(band.probabilities, band.labels)
            parts.write(band.index, **rasters)

        return write

    def _is_finished(self, tag: str) -> bool:
        wanted = [self.target]
        wanted += [self._beside("probabilities.tif")] if self.options.probabilities else []
        wanted += [self._beside("overlay.jpg")] if self.options.overlay else []
        return all(file.is_file() for file in wanted) and read_tags(self.target).get(PLAN_TAG) == tag

    def _beside(self, name: str) -> Path:
        return self.target.with_name(f"{self.target.stem}.{name}")

    def _assemble(
        self, scene: Scene, bands: tuple[int, ...], parts: Parts, grid: Grid, tag: str
    ) -> tuple[int, ...]:
        info = self.segmenter.info
        tags = {
            PLAN_TAG: tag,
            "model": json.dumps({**info.dataset, **{k: str(v) for k, v in info.extra.items()}}),
        }
        layout = Layout(scene.height, scene.width, scene.georeference, tags)
        counts = np.zeros(256, np.int64)
        probabilities = self._beside("probabilities.tif")
        if self.options.probabilities:
            rows = _to_scene(parts.rows("probabilities"), grid, layout)
            write_probabilities(probabilities, rows, layout, info.classes)
        if self.options.overlay:
            from pipeline.prediction.overlay import write_overlay

            write_overlay(self._beside("overlay.jpg"), scene, bands, parts.rows("labels"), grid, info.classes)
        rows = _counted(_to_scene(parts.rows("labels"), grid, layout), counts)
        write_labels(self.target, rows, layout, info.classes)  # last: it says that all is finished
        if self.target.suffix.lower() == ".png":
            aux_file(self.target).unlink(missing_ok=True)
        return (*counts[: info.classes.num_classes].tolist(), int(counts[255]))


def _to_scene(rows: Rows, grid: Grid, layout: Layout) -> Rows:
    """Brings rows of the predicted grid to the scene's own grid by the nearest pixel."""
    if (grid.height, grid.width) == (layout.height, layout.width):
        yield from rows
        return
    down = np.minimum((np.arange(layout.height) + 0.5) * grid.height / layout.height, grid.height - 1).astype(
        int
    )
    across = np.minimum((np.arange(layout.width) + 0.5) * grid.width / layout.width, grid.width - 1).astype(
        int
    )
    for top, block in rows:
        first, last = np.searchsorted(down, [top, top + block.shape[-2]])
        if last > first:
            yield int(first), block[..., down[first:last] - top, :][..., across]


def _counted(rows: Rows, counts: "npt.NDArray[np.int64]") -> Rows:
    for top, block in rows:
        counts += np.bincount(block.ravel(), minlength=256)
        yield top, block

"""Plans the mapping of a scene: what it needs, and whether it is possible, before any window is predicted."""

import shutil
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import psutil

from d2ls import storage
from d2ls.bundle import ModelInfo
from d2ls.errors import ConfigError, StorageError
from d2ls.inference import overlap_pixels, span_count
from pipeline.models import NO_TEMPERATURE
from pipeline.prediction.areas import read_report
from pipeline.prediction.ground import GroundArea, ground_area
from pipeline.prediction.inputs import same_file
from pipeline.prediction.layers import Layer, read_layer
from pipeline.prediction.outputs import Outputs
from pipeline.prediction.parts import check_ours
from pipeline.prediction.polygons import chosen_classes
from pipeline.prediction.preprocessing import check_nodata, check_type, choose_bands, plan_grid, range_note
from pipeline.prediction.provenance import Provenance
from pipeline.prediction.request import AreaOptions, MapOptions, PolygonOptions, WindowPlan
from sharding.raster.scene import Scene
from sharding.raster.vectors import require_plain_name

MAX_WINDOWS = 2_000_000
"""Largest number of windows of a scene; at ten per second they take more than two days."""

LABEL_BYTES, PROBABILITY_BYTES = 0.6, 1.5
"""Bytes per pixel on disk while a map is made (rows, plain and final file), for labels and for each probability.

Measured on maps of an untrained network, which compress badly.
"""


@dataclass(frozen=True)
class ScenePlan:
    """The plan of a map.

    Attributes:
        source: the scene.
        outputs: the files.
        height: rows of scene and map.
        width: columns.
        bands: positions of the bands that the model sees.
        size: rows and columns that the scene is resampled to first; None: it is not resampled.
        windows: number of windows.
        disk: approximate upper limit of bytes that the work takes in addition to the map.
        provenance: written into the map.
        notes: choices and warnings to print before the work.
        finished: whether all files exist already.
        ground: ground area of a pixel if an option needs it; else None.
        area: polygons to map in; None: everywhere.
        zones: polygons to count in; None: only the whole map.
        confusion: confusion matrix of the evaluation report; None: no report.
    """

    source: str
    outputs: Outputs
    height: int
    width: int
    bands: tuple[int, ...]
    size: tuple[int, int] | None
    windows: int
    disk: int
    provenance: Provenance
    notes: tuple[str, ...]
    finished: bool
    ground: GroundArea | None = None
    area: Layer | None = None
    zones: Layer | None = None
    confusion: npt.NDArray[np.int64] | None = None

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of the grid of windows."""
        return self.size or (self.height, self.width)


def plan_scene(
    scene: Scene, source: str, target: str, info: ModelInfo, look: WindowPlan, options: MapOptions, model: str
) -> ScenePlan:
    """Plans the mapping of an open scene.

    Args:
        scene: the scene.
        source: its location.
        target: location of the map.
        info: the model.
        look: windows and views.
        options: how to map.
        model: digest of the model's files.

    Raises:
        ConfigError: another file is in the place of the map, or the map needs too many windows or too much memory.
        DataError: the scene has other bands or another type than the model takes.
    """
    outputs = Outputs.of(target, options)
    if outputs.polygons:
        require_plain_name(outputs.polygons)
    bands, band_note = choose_bands(scene, info, options.bands)
    check_type(scene, info, options.scale_range)
    check_nodata(scene, options.nodata)
    size, size_note = plan_grid(scene, info, options.resample)
    rows, columns = size or (scene.height, scene.width)
    windows = _count_windows(scene.name, (rows, columns), look)
    _check_memory(scene.name, (rows, columns), look, info, windows)
    settings = {
        "height": scene.height, "width": scene.width, "bands": bands, "size": size, "window": look.window,
        "overlap": look.overlap, "views": [asdict(view) for view in look.views], "scale_range": options.scale_range,
        "nodata": options.reading(info).nodata, "page": options.page,
    }  # fmt: skip
    layers = _Layers.of(scene, info, options)
    settings |= layers.settings(options)
    provenance = Provenance.of(source, scene.info.sidecars, model, settings)
    _refuse_own_layers(outputs, options)
    state = outputs.check(provenance, overwrite=options.overwrite)
    if state != "finished":
        check_ours(outputs.parts)
    changed = "changed since it was mapped, it is mapped again" if state == "outdated" else ""
    notes = (
        changed, band_note, size_note, _place_note(scene, target), _nodata_note(info, options),
        _scaling_note(scene, info, options, bands) if state != "finished" else "",
        _temperature_note(info, options), *layers.notes,
    )  # fmt: skip
    planes = info.classes.num_classes * options.probabilities + options.needs_confidence
    return ScenePlan(
        source, outputs, scene.height, scene.width, bands, size, windows,
        round(rows * columns * (LABEL_BYTES + PROBABILITY_BYTES * planes))
        + (3 * scene.height * scene.width if options.min_area_m2 is not None else 0),
        provenance, tuple(note for note in notes if note), state == "finished", layers.ground, layers.area,
        layers.zones, layers.confusion,
    )  # fmt: skip


def _refuse_own_layers(outputs: Outputs, options: MapOptions) -> None:
    """Refuses to overwrite a layer or report that the same call reads.

    Raises:
        ConfigError: names it.
    """
    areas = options.areas or AreaOptions()
    given = {"--area": options.area, "--zones": areas.zones, "--evaluation-report": areas.report}
    for option, path in given.items():
        for file in outputs.files if path else ():
            if path is not None and same_file(file, path):
                raise ConfigError(
                    f"{file}: is the file of {option} and would be overwritten; name another OUTPUT"
                )


@dataclass(frozen=True)
class _Layers:
    """Layers that options place over a scene, read and checked."""

    ground: GroundArea | None
    area: Layer | None
    zones: Layer | None
    confusion: npt.NDArray[np.int64] | None

    @classmethod
    def of(cls, scene: Scene, info: ModelInfo, options: MapOptions) -> Self:
        place, size = scene.georeference, (scene.height, scene.width)
        needed_by = options.measured_by
        ground = ground_area(scene.name, place, *size, needed_by) if needed_by else None
        if options.polygons:
            chosen_classes(options.polygons, info.classes)
        areas = options.areas or AreaOptions()
        return cls(
            ground,
            read_layer(options.area, scene.name, place, size) if options.area else None,
            read_layer(areas.zones, scene.name, place, size, areas.zone_field) if areas.zones else None,
            _confusion(areas, info),
        )

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(note for layer in (self.area, self.zones) if layer for note in layer.notes)

    def settings(self, options: MapOptions) -> dict[str, Any]:
        """Settings that decide the values of the files; an unused option adds nothing."""
        polygons = options.polygons
        values = {
            "min_area_m2": options.min_area_m2,
            "area": self.area and self.area.digest,
            "zones": self.zones and self.zones.digest,
            "confusion": None if self.confusion is None else self.confusion.tolist(),
            "polygons": (polygons.classes, polygons.simplify_m)
            if polygons and polygons != PolygonOptions()
            else None,
        }
        return {name: value for name, value in values.items() if value is not None}


def _confusion(areas: AreaOptions, info: ModelInfo) -> npt.NDArray[np.int64] | None:
    if areas.report:
        return read_report(areas.report, info.classes)
    return None if areas.tested is None else np.array(areas.tested, np.int64)


def _place_note(scene: Scene, target: str) -> str:
    """Returns a note on a georeference that the map cannot keep."""
    where = scene.georeference
    if where.rpc:
        return "placed by RPCs only, which are not applied: the map has no coordinates; orthorectify the scene first"
    if target.lower().endswith(".png") and (where.placed or where.gcps):
        return "a PNG keeps no coordinates; name a .tif to keep those of the scene"
    return ""


def _nodata_note(info: ModelInfo, options: MapOptions) -> str:
    if options.nodata is not None or info.nodata is None:
        return ""
    return f"pixels of value {info.nodata:g} hold no data, as in the training; --nodata names another value"


def _scaling_note(scene: Scene, info: ModelInfo, options: MapOptions, bands: tuple[int, ...]) -> str:
    tags = "tags of scale and offset in the file are not applied, as in the training" if scene.scaling else ""
    values = range_note(scene, info, bands) if options.scale_range is None else ""
    return "; ".join(text for text in (tags, values) if text)


def _temperature_note(info: ModelInfo, options: MapOptions) -> str:
    return (
        f"the model has {NO_TEMPERATURE}" if options.needs_probabilities and info.temperature is None else ""
    )


def check_disk(needed: int, target: str) -> int | None:
    """Refuses work that does not fit on a local disk.

    Args:
        needed: bytes.
        target: a file or folder on the disk; need not exist.

    Returns:
        Free bytes; None in an object store.

    Raises:
        StorageError: too little is free.
    """
    if not storage.is_local(target):
        return None
    folder = storage.local_path(target)
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"{target}: mapping takes about {megabytes(needed)} there, {megabytes(free)} are free. Free some, name an "
            "OUTPUT on another disk, map fewer scenes at once, or leave out --probabilities"
        )
    return free


def megabytes(count: float) -> str:
    """Formats a number of bytes for messages."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _count_windows(name: str, size: tuple[int, int], look: WindowPlan) -> int:
    overlap = overlap_pixels(look.window, look.overlap)
    rows, columns = (span_count(side, look.window, overlap) for side in size)
    if rows * columns > MAX_WINDOWS:
        raise ConfigError(
            f"{name}: {size[0]:,} x {size[1]:,} pixels in windows of {look.window} with an overlap of {overlap} are "
            f"{rows * columns:,} windows, at most {MAX_WINDOWS:,} are mapped at once. At ten per second they "
            f"would take {rows * columns / 36_000:,.0f} h. Give a larger --window, less --overlap, or cut the scene"
        )
    return rows * columns


def _check_memory(name: str, size: tuple[int, int], look: WindowPlan, info: ModelInfo, windows: int) -> None:
    """Refuses windows whose pixels and probabilities are larger than the machine's memory."""
    height, width = (min(side, look.window) for side in size)
    batch = min(look.batch_size, windows)
    planes = len(info.bands) + 2 * info.classes.num_classes
    needed, there = 4 * batch * planes * height * width, psutil.virtual_memory().total
    if needed > there:
        raise ConfigError(
            f"{name}: --batch-size {batch} x --window {height} x {width} x {planes} planes (bands in, logits and "
            f"probabilities out) x 4 bytes = {megabytes(needed)}, this machine has {megabytes(there)}. Lower --window "
            f"(the model was trained with {info.window}) or --batch-size"
        )

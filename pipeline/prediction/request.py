"""The request of a call of `pipeline.predict`, as typed values."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.config.train import ClusterConfig
from sharding.raster.base import Reading

if TYPE_CHECKING:
    from d2ls.bundle import ModelInfo
    from d2ls.inference import Predictor, TTATransform


@dataclass(frozen=True)
class PolygonOptions:
    """The polygons of a map to write.

    Attributes:
        file: the GeoPackage; None: beside the map, under its name.
        classes: names of the classes that are outlined; empty: all.
        simplify_m: features narrower than about this many metres are removed; None: edges follow the pixels.
    """

    file: str | None = None
    classes: tuple[str, ...] = ()
    simplify_m: float | None = None


@dataclass(frozen=True)
class AreaOptions:
    """The areas to count.

    Attributes:
        zones: vector file of polygons to count in, in addition to the whole map.
        zone_field: its attribute that names them; None: their number.
        report: report.json of `pipeline.evaluate`, to adjust the areas for the model's errors.
        tested: without a report, its counts: test pixels by predicted class and true class; None: not adjusted.
    """

    zones: str | None = None
    zone_field: str | None = None
    report: str | None = None
    tested: tuple[tuple[int, ...], ...] | None = None


@dataclass(frozen=True)
class MapOptions:
    """Options for mapping scenes.

    Attributes:
        bands: numbers of the file's bands, from 1, in the order of the model's; None chooses by count or name.
        scale_range: file values that stand for 0 and for the model's highest value; None takes pixels as they are.
        nodata: value of pixels without data, in addition to the files' tags; None: as in the training.
        page: page of TIFF files of several pages, from 1.
        resample: resample scenes to the pixel size of the training first; the map is on the scene's own grid.
        probabilities: also write the class probabilities.
        overlay: also write a picture of the map over the image.
        confidence: also write the probability of the winning class.
        style: also write a style for QGIS.
        polygons: also write polygons; None: no.
        areas: also write tables of areas; None: no.
        min_area_m2: smaller parts take the class around them.
        area: vector file; only pixels in its polygons are read and mapped.
        overwrite: map finished scenes again, and replace any file in the place of the map.
    """

    bands: tuple[int, ...] | None = None
    scale_range: tuple[float, float] | None = None
    nodata: float | None = None
    page: int | None = None
    resample: bool = False
    probabilities: bool = False
    overlay: bool = False
    confidence: bool = False
    style: bool = False
    polygons: PolygonOptions | None = None
    areas: AreaOptions | None = None
    min_area_m2: float | None = None
    area: str | None = None
    overwrite: bool = False

    @property
    def needs_confidence(self) -> bool:
        """Whether the probability of the winning class is stored."""
        return self.confidence or self.polygons is not None

    @property
    def needs_probabilities(self) -> bool:
        """Whether any file holds probabilities."""
        return self.probabilities or self.needs_confidence

    @property
    def measured_by(self) -> str:
        """The options that need true areas, for messages; empty: none."""
        simplify = self.polygons is not None and self.polygons.simplify_m is not None
        options = {
            "--polygons": self.polygons is not None, "--simplify-m": simplify, "--hectares": self.areas is not None,
            "--min-area-m2": self.min_area_m2 is not None,
        }  # fmt: skip
        return ", ".join(name for name, given in options.items() if given)

    def reading(self, info: "ModelInfo") -> Reading:
        """Returns the settings that scenes do not state; the nodata value of the training is stored in the model."""
        return Reading(info.nodata if self.nodata is None else self.nodata, self.page)


class WindowPlan(NamedTuple):
    """Windows of a model: side, overlap (share), test-time views, number of windows at once."""

    window: int
    overlap: float
    views: "tuple[TTATransform, ...]"
    batch_size: int

    @classmethod
    def of(cls, predictor: "Predictor") -> "WindowPlan":
        """Takes the values of a loaded model."""
        return cls(predictor.window, predictor.overlap, predictor.views, predictor.batch_size)


@dataclass(frozen=True)
class ModelSettings:
    """Settings of the model; None takes the model's own value.

    Attributes:
        tta: preset of test-time augmentation.
        batch_size: windows at once.
        window: side of the windows in pixels.
        overlap: overlap of windows as a share of their side.
        device: where to compute.
    """

    tta: str = "none"
    batch_size: int = 4
    window: int | None = None
    overlap: float | None = None
    device: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns keyword arguments of `pipeline.models.load_predictor`."""
        return vars(self).copy()

    def windows(self, info: "ModelInfo") -> WindowPlan:
        """Returns the windows that will be used, before the model is loaded."""
        from d2ls.inference import tta_transforms
        from d2ls.inference.predictor import OVERLAP

        return WindowPlan(
            info.window if self.window is None else self.window,
            OVERLAP if self.overlap is None else self.overlap,
            tta_transforms(self.tta),
            self.batch_size,
        )


@dataclass(frozen=True)
class PredictRequest:
    """A call of the command.

    Attributes:
        model: anything that `pipeline.load_model` takes.
        source: image, folder, pattern or URI.
        target: map, folder or submission.
        kind: suffix of maps in a folder, `tif` or `png`.
        options: how scenes are mapped.
        settings: settings of the model.
        cluster: Ray workers to spread scenes over; one worker is this process.
        tracking_uri: MLflow store of `models:/` and `runs:/`.
        submission: name of a benchmark, or None.
        mosaic: the images of the source are tiles of one scene.
    """

    model: str
    source: str
    target: str
    kind: str = "tif"
    options: MapOptions = MapOptions()
    settings: ModelSettings = ModelSettings()
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracking_uri: str | None = None
    submission: str | None = None
    mosaic: bool = False

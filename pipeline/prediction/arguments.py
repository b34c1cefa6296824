"""The command line of `pipeline.predict`: parses it to a `PredictRequest` and refuses impossible values."""

import argparse
import math
from typing import Any

from d2ls import storage
from d2ls.errors import ConfigError
from pipeline.cli import add_tracking_uri, parser
from pipeline.config.train import ClusterConfig
from pipeline.prediction.request import AreaOptions, MapOptions, ModelSettings, PolygonOptions, PredictRequest


def parse_request(command: str, description: str, examples: str, argv: list[str] | None) -> PredictRequest:
    """Parses and checks the command line.

    Raises:
        ConfigError: an impossible value; names the option and what is allowed.
    """
    arguments = parser(command, description, examples)
    _add_scenes(arguments)
    _add_products(arguments)
    _add_windows(arguments)
    _add_machines(arguments)
    values = arguments.parse_args(argv)
    if values.more:
        words = [values.input, values.output, *values.more]
        raise ConfigError(
            f"{len(words)} words after MODEL ({words[0]} ... {words[-1]}); only INPUT and OUTPUT follow it. If the "
            "shell expanded a pattern, put quotes around it: 'scenes/*.tif' maps/"
        )
    return PredictRequest(
        model=values.model,
        source=values.input,
        target=values.output,
        kind=values.format,
        options=_options(values),
        settings=_settings(values),
        cluster=ClusterConfig.parse(
            {"workers": values.workers, "address": values.address, "max_failures": 3}, where="command line"
        ),
        tracking_uri=values.tracking_uri,
        submission=values.submission,
        mosaic=values.mosaic,
    )


def _add_scenes(arguments: argparse.ArgumentParser) -> None:
    add = arguments.add_argument
    add("model", metavar="MODEL", help="models:/name@alias, models:/name/version, runs:/id/path, or a folder")
    add("input", metavar="INPUT", help="image, folder, 'pattern' or URI: PNG, JPEG, WebP, TIFF, GeoTIFF")
    add("output", metavar="OUTPUT", help="map.tif or map.png for one scene, else a folder (or a submission)")
    add("more", nargs="*", help=argparse.SUPPRESS)
    add("--format", choices=("tif", "png"), default="tif", help="of maps in a folder (default: tif)")
    add("--bands", metavar="1,2,3", help="bands of the file to use, from 1, in the model's order")
    add(
        "--scale-range",
        metavar="LOW,HIGH",
        help="file values that stand for the model's darkest and brightest",
    )
    add("--nodata", type=float, metavar="V", help="value of pixels without data (default: as in training)")
    add("--page", type=int, metavar="N", help="page of a TIFF of several pages, from 1")
    add("--resample", action="store_true", help="resample scenes to the pixel size of the training first")
    add(
        "--probabilities", action="store_true", help="also write OUTPUT.probabilities.tif, one band per class"
    )
    add("--overlay", action="store_true", help="also write OUTPUT.overlay.jpg, the map over the image")
    add(
        "--area", metavar="FILE", help="polygons (GeoPackage, ...): only what lies in them is read and mapped"
    )
    add(
        "--mosaic",
        action="store_true",
        help="the images of INPUT are tiles of one scene: one map without seams",
    )
    add(
        "--overwrite", action="store_true", help="map finished scenes again; replace files with OUTPUT's name"
    )
    add(
        "--submission",
        choices=("loveda", "uavid"),
        help="make and check a submission for the benchmark's server",
    )


def _add_products(arguments: argparse.ArgumentParser) -> None:
    add = arguments.add_argument
    add("--confidence", action="store_true", help="also write OUTPUT.confidence.tif, the winning probability")
    add("--style", action="store_true", help="also write OUTPUT.qml, from which QGIS takes colours and names")
    add(
        "--polygons", nargs="?", const="", metavar="FILE.gpkg",
        help="also write the polygons of the map (default: OUTPUT.gpkg), with class, area and mean probability",
    )  # fmt: skip
    add("--polygon-classes", metavar="A,B", help="classes to outline (default: all)")
    add(
        "--simplify-m",
        type=float,
        metavar="M",
        help="smooth polygons; features narrower than about M metres are removed",
    )
    add("--min-area-m2", type=float, metavar="A", help="parts smaller than A take the class around them")
    add(
        "--hectares",
        action="store_true",
        help="also write OUTPUT.areas.csv and OUTPUT.areas.md, areas by class",
    )
    add("--zones", metavar="FILE", help="polygons to count areas in, in addition to the whole map")
    add("--zone-field", metavar="NAME", help="attribute that names the zones (default: their number)")
    add(
        "--evaluation-report", metavar="FILE",
        help="report.json of pipeline.evaluate, for areas adjusted for the model's errors (default: the one that was "
        "registered with the model)",
    )  # fmt: skip


def _add_windows(arguments: argparse.ArgumentParser) -> None:
    add = arguments.add_argument
    add(
        "--window", type=int, metavar="N",
        help="side of the windows in pixels (default: that of the training)",
    )  # fmt: skip
    add("--overlap", type=float, metavar="F", help="overlap of windows, share of their side (default: 0.25)")
    add(
        "--tta", default="none", metavar="PRESET",
        help="test-time augmentation: none, flips (4 x the time), flips_turns (8 x), flips_scales (12.5 x)",
    )  # fmt: skip
    add("--batch-size", type=int, default=4, metavar="N", help="windows at once (default: 4)")


def _add_machines(arguments: argparse.ArgumentParser) -> None:
    add = arguments.add_argument
    add(
        "--workers", type=int, default=1, metavar="N",
        help="Ray workers for many scenes (default: 1: this process)",
    )  # fmt: skip
    add("--address", help="Ray cluster to join (default: RAY_ADDRESS, else a local one)")
    add("--device", help="cpu, cuda, cuda:1 ... (default: cuda if there is one)")
    add_tracking_uri(arguments)


def _numbers(text: str | None, option: str, kind: type) -> tuple[Any, ...] | None:
    try:
        return tuple(kind(part) for part in text.split(",")) if text is not None else None
    except ValueError:
        raise ConfigError(f"{option} {text}: give numbers with commas between them") from None


def _polygons(values: argparse.Namespace) -> PolygonOptions | None:
    if values.polygons is None:
        for option in ("polygon_classes", "simplify_m"):
            if getattr(values, option) is not None:
                raise ConfigError(f"--{option.replace('_', '-')} is about polygons; add --polygons")
        return None
    if values.polygons and not values.polygons.lower().endswith(".gpkg"):
        raise ConfigError(
            f"--polygons {values.polygons}: polygons are written as .gpkg. Name such a file, or write --polygons after "
            "MODEL, INPUT and OUTPUT"
        )
    if values.polygons and not (storage.is_local(values.polygons) and storage.is_local(values.output)):
        raise ConfigError(
            f"--polygons {values.polygons}: a name of their own is for local files; leave it out, and they lie beside "
            "the map"
        )
    _positive(values.simplify_m, "--simplify-m", "metres")
    names = values.polygon_classes.split(",") if values.polygon_classes else []
    return PolygonOptions(values.polygons or None, tuple(name.strip() for name in names), values.simplify_m)


def _areas(values: argparse.Namespace) -> AreaOptions | None:
    if values.zone_field and not values.zones:
        raise ConfigError(f"--zone-field {values.zone_field} is about zones; name their file with --zones")
    if not (values.hectares or values.zones or values.evaluation_report):
        return None
    return AreaOptions(values.zones, values.zone_field, values.evaluation_report)


def _positive(value: float | None, option: str, unit: str) -> None:
    if value is not None and not (0 < value < math.inf):
        raise ConfigError(f"{option} {value:g}: give {unit}, more than 0")


def _refuse_products_of_submission(values: argparse.Namespace) -> None:
    given = ("confidence", "style", "polygons", "min_area_m2", "hectares", "zones", "area", "mosaic")
    for name in given:
        if values.submission and getattr(values, name) not in (None, False):
            raise ConfigError(
                f"--{name.replace('_', '-')}: not for a submission, which holds label images alone"
            )


def _options(values: argparse.Namespace) -> MapOptions:
    _refuse_products_of_submission(values)
    _positive(values.min_area_m2, "--min-area-m2", "square metres")
    scale_range = _numbers(values.scale_range, "--scale-range", float)
    if scale_range is not None and (len(scale_range) != 2 or not all(map(math.isfinite, scale_range))):
        raise ConfigError(
            f"--scale-range {values.scale_range}: give the low and the high value, for instance 0,10000"
        )
    if scale_range is not None and not scale_range[0] < scale_range[1]:
        raise ConfigError(
            f"--scale-range {values.scale_range}: give the low value first, for instance 0,10000"
        )
    if values.page is not None and values.page < 1:
        raise ConfigError(f"--page {values.page}: pages are counted from 1")
    return MapOptions(
        nodata=values.nodata,
        page=values.page,
        bands=_numbers(values.bands, "--bands", int),
        scale_range=scale_range,
        resample=values.resample,
        probabilities=values.probabilities,
        overlay=values.overlay,
        confidence=values.confidence,
        style=values.style,
        polygons=_polygons(values),
        areas=_areas(values),
        min_area_m2=values.min_area_m2,
        area=values.area,
        overwrite=values.overwrite,
    )


def _settings(values: argparse.Namespace) -> ModelSettings:
    from d2ls.inference import overlap_pixels, tta_transforms
    from d2ls.inference.sliding_window import ALIGNMENT

    tta_transforms(values.tta)
    if values.window is not None and values.window < ALIGNMENT:
        raise ConfigError(
            f"--window {values.window}: at least {ALIGNMENT} pixels, the network's deepest stride. Leave it out to "
            "take the window of the training"
        )
    overlap_pixels(values.window or 1, values.overlap or 0.0)
    if values.batch_size < 1:
        raise ConfigError(f"--batch-size {values.batch_size}: at least 1")
    names = ("tta", "batch_size", "window", "overlap", "device")
    return ModelSettings(**{name: getattr(values, name) for name in names})

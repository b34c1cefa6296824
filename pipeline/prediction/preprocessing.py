"""Fits a scene to a model: its bands, its pixel size, and its range of values."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from d2ls.bundle import ModelInfo
from d2ls.errors import ConfigError, DataError
from d2ls.inference import Predictor
from sharding.raster.bands import band_text, bands_in_order, contradiction, find_bands
from sharding.raster.base import value_problem
from sharding.raster.scene import Scene

if TYPE_CHECKING:
    import numpy.typing as npt

GSD_TOLERANCE = 1.25
"""Factor between the pixel sizes of scene and training above which there is a warning."""

MAX_ENLARGEMENT = 8
"""Largest factor by which `--resample` enlarges each side of a scene: one pixel becomes 64."""

_SEEN = 512  # side of the window that is compared with the range of the training

SMALLEST_SIDE = 32
"""Smallest side, in pixels, that `--resample` may leave: the deepest stride of the encoders."""


def choose_bands(scene: Scene, info: ModelInfo, chosen: Sequence[int] | None) -> tuple[tuple[int, ...], str]:
    """Chooses which bands of a scene the model sees, by the rule of training (`sharding.raster.bands`).

    Args:
        scene: the scene.
        info: the model.
        chosen: band numbers from 1, as given by the user.

    Returns:
        Positions from 0, and a note if the choice is not obvious.

    Raises:
        DataError: there is no safe choice; the message lists the bands and tells how to choose.
    """
    count = len(info.bands)
    names = ", ".join(info.bands)
    if chosen is not None:
        if len(chosen) != count or not all(1 <= band <= scene.count for band in chosen):
            raise DataError(
                f"{scene.name}: --bands {','.join(map(str, chosen))}: the model takes {count} ({names}), "
                f"the file has bands 1 to {scene.count}; name {count} of them in the model's order"
            )
        return tuple(band - 1 for band in chosen), ""
    in_order = info.reading.get("band_order") == "positions"
    bands = (bands_in_order if in_order else find_bands)(scene.info, info.bands)
    if bands is not None:
        plain = bands == bands_in_order(scene.info, info.bands)
        notes = [] if plain else [f"bands {[band + 1 for band in bands]} chosen by their names ({names})"]
        if scene.alpha is not None and scene.alpha not in bands:
            notes.append(f"band {scene.alpha + 1} is taken as transparency: where it is 0, no label")
        elif scene.alpha is not None and not scene.info.names[scene.alpha][0]:
            name = info.bands[bands.index(scene.alpha)]
            notes.append(f"band {scene.alpha + 1} is marked as transparency and taken as {name}")
        return bands, "; ".join(notes)
    example = ",".join(str(min(band, scene.count)) for band in range(1, count + 1))
    marked = "" if scene.alpha is None else f", band {scene.alpha + 1} of them marked as transparency"
    against = contradiction(scene.info, info.bands).replace("in the recipe", "in the model")
    raise DataError(
        f"{scene.name}: {band_text(scene.info)}{marked}, the model takes {count} ({names}). "
        f"{f'{against[:1].upper()}{against[1:]}. ' if against else ''}"
        f"Choose with --bands, for instance --bands {example}"
    )


def plan_grid(scene: Scene, info: ModelInfo, resample: bool) -> tuple[tuple[int, int] | None, str]:
    """Compares pixel sizes; returns the grid to resample to (None: the scene's own) and a warning.

    Raises:
        ConfigError: `resample` without a known pixel size, or by a factor that is too large or too small.
    """
    here, trained = scene.pixel_metres, info.ground_sampling_distance
    if here is None or trained is None:
        if resample:
            missing = (
                "the scene's pixel size; give the file a georeference, or leave out --resample"
                if here is None
                else "the model's ground sampling distance (data.ground_sampling_distance of its recipe); leave out "
                "--resample"
            )
            raise ConfigError(f"{scene.name}: --resample needs to know {missing}")
        return None, ""
    factor = here / trained
    shape = _shape_note(scene)
    if resample:
        if abs(factor - 1) < 0.01:
            return None, shape
        size = max(1, round(scene.height * factor)), max(1, round(scene.width * factor))
        _check_resampling(scene, here, trained, size)
        note = f"resampled from {_round(here)} m per pixel to {_round(trained)} m, as in training"
        return size, f"{note}; {shape}" if shape else note
    if shape:
        return None, shape
    if not 1 / GSD_TOLERANCE <= factor <= GSD_TOLERANCE:
        side = "small" if factor > 1 else "large"
        times = factor if factor > 1 else 1 / factor
        finer = "take an image of finer pixels, or a model that was trained on such coarse ones"
        return None, (
            f"pixels of {_round(here)} m, the model was trained with {_round(trained)} m: things look {_round(times)} "
            f"times too {side} to it, expect a poor map; {finer if factor > MAX_ENLARGEMENT else 'consider --resample'}"
        )
    return None, ""


def _shape_note(scene: Scene) -> str:
    """Returns a warning if pixels are far from square on the ground, as they are in degrees; else an empty text."""
    sides = scene.georeference.pixel_sides(scene.height, scene.width)
    if sides is None or max(sides) <= GSD_TOLERANCE * min(sides):
        return ""
    return (
        f"pixels are {_round(sides[1])} m wide and {_round(sides[0])} m high on the ground: a model of square pixels "
        "sees things stretched. If the training had such, project the scene: gdalwarp -t_srs EPSG:... in.tif out.tif"
    )


def _check_resampling(scene: Scene, here: float, trained: float, size: tuple[int, int]) -> None:
    factor = here / trained
    numbers = (
        f"{scene.name}: --resample from {_round(here)} m per pixel to the model's {_round(trained)} m turns "
        f"{scene.height:,} x {scene.width:,} pixels into {size[0]:,} x {size[1]:,}"
    )
    if factor > MAX_ENLARGEMENT:
        raise ConfigError(
            f"{numbers}: {factor:,.0f} times enlarged, and more than {MAX_ENLARGEMENT} times shows nothing new. "
            "Take an image of finer pixels, or a model that was trained on such coarse ones"
        )
    if min(size) < min(SMALLEST_SIDE, scene.height, scene.width):
        raise ConfigError(
            f"{numbers}: less than {SMALLEST_SIDE} pixels per side show nothing. Leave out --resample, or take a model "
            "that was trained on finer pixels"
        )


def _round(number: float) -> str:
    """Formats a number with two or three significant digits."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.2g}" if number >= 10 else f"{number:.3g}"


def check_type(scene: Scene, info: ModelInfo, limits: tuple[float, float] | None) -> None:
    """Refuses pixels of another type than the model was trained on.

    Raises:
        DataError: the types differ, and no range of values is given.
    """
    if limits is None and scene.dtype != info.dtype:
        raise DataError(
            f"{scene.name}: pixels are {scene.dtype}, the model was trained on {info.dtype}. Say which file "
            "values stand for its darkest and brightest with --scale-range, for instance --scale-range 0,10000"
        )


def check_nodata(scene: Scene, nodata: float | None) -> None:
    """Refuses a nodata value that pixels of the scene cannot have.

    Raises:
        ConfigError: it is no value of the type.
    """
    if problem := value_problem(nodata, scene.dtype):
        raise ConfigError(f"--nodata: {scene.name}: {problem}")


def range_note(scene: Scene, info: ModelInfo, bands: Sequence[int]) -> str:
    """Compares the values in the middle of a scene of 16 bit or floats with the range of the training.

    Returns a warning if most of them lie outside, or if they use a small part of it; else an empty text.
    """
    ends = info.normalization.get("scale") or [(0.0, info.normalization.get("max_value"))] * len(bands)
    if scene.dtype == "uint8" or ends[0][1] is None:
        return ""
    rows, columns = (
        (max(0, side // 2 - _SEEN // 2), min(side, side // 2 + _SEEN // 2))
        for side in (scene.height, scene.width)
    )
    try:
        pixels, valid = scene.read(rows, columns, bands)
    except DataError:
        return ""  # reported when it is mapped
    values = pixels[np.ones(pixels.shape[:2], bool) if valid is None else valid].astype(np.float64)
    values = values[np.isfinite(values).all(axis=1)]
    if not len(values):
        return ""
    low, high = np.array(ends, np.float64).T
    beyond = float(((values < low) | (values > high)).mean())
    used = float(np.max((values.max(axis=0) - low) / (high - low)))
    if beyond <= 0.5 and not (scene.dtype == "uint16" and used < 1 / 16):
        return ""
    return (
        f"values in the middle are {values.min():g} to {values.max():g}, the model was trained with {low.min():g} to "
        f"{high.max():g}: expect a poor map. If the units differ, say with --scale-range which values stand for the "
        "darkest and the brightest"
    )


def plan_scaling(
    predictor: Predictor, limits: tuple[float, float] | None
) -> Callable[["npt.NDArray[Any]"], "npt.NDArray[Any]"]:
    """Returns the scaling from the file's values to those of the training."""
    dtype = predictor.info.dtype
    if limits is None:
        return lambda pixels: pixels
    low, high = limits
    if not low < high:
        raise ConfigError(f"--scale-range {low},{high}: give the low value first")
    top = getattr(predictor.network.normalization, "max_value", None) or np.iinfo(dtype).max
    ends = np.array(predictor.info.normalization.get("scale") or ((0.0, top),), np.float32)
    darkest, brightest = ends[:, 0], ends[:, 1]

    def scale(pixels: "npt.NDArray[Any]") -> "npt.NDArray[Any]":
        share = ((pixels.astype(np.float32) - low) / (high - low)).clip(0, 1)
        scaled = darkest + share * (brightest - darkest)
        return scaled if dtype == "float32" else np.rint(np.nan_to_num(scaled)).astype(dtype)

    return scale

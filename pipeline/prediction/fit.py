"""How a scene meets a model: which of its bands, at which ground distance, which of its values."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from d2ls.bundle import ModelInfo
from d2ls.errors import ConfigError, DataError
from d2ls.inference import Segmenter
from sharding.raster.scene import Scene

if TYPE_CHECKING:
    import numpy.typing as npt

GSD_TOLERANCE = 1.25
"""How far the pixel size may be from the training's, as a factor, before it is warned about."""


def choose_bands(scene: Scene, info: ModelInfo, chosen: Sequence[int] | None) -> tuple[tuple[int, ...], str]:
    """Chooses which bands of a scene the model sees.

    Args:
        scene: the scene.
        info: the model.
        chosen: band numbers from 1, as a person gave them.

    Returns:
        Positions from 0, and a note where the choice is not plain.

    Raises:
        DataError: there is no safe choice; says what is there and how to choose.
    """
    wanted = len(info.bands)
    names = ", ".join(info.bands)
    if chosen is not None:
        if len(chosen) != wanted or not all(1 <= band <= scene.count for band in chosen):
            raise DataError(
                f"{scene.name}: --bands {','.join(map(str, chosen))}: the model takes {wanted} ({names}), "
                f"the file has bands 1 to {scene.count}"
            )
        return tuple(band - 1 for band in chosen), ""
    mask = (
        ""
        if scene.alpha is None
        else f"band {scene.alpha + 1} is taken as transparency: where it is 0, no label"
    )
    if all(name.lower() in scene.band_names for name in info.bands):
        found = tuple(scene.band_names.index(name.lower()) for name in info.bands)
        plain = found == tuple(range(scene.count - (scene.alpha is not None)))
        note = "" if plain else f"bands {[band + 1 for band in found]} chosen by their names ({names})"
        return found, "; ".join(text for text in (note, mask) if text)
    colors = tuple(band for band in range(scene.count) if band != scene.alpha)
    if len(colors) == wanted:
        return colors, mask
    example = ",".join(str(min(band, scene.count)) for band in range(1, wanted + 1))
    marked = "" if scene.alpha is None else f", band {scene.alpha + 1} of them marked as transparency"
    raise DataError(
        f"{scene.name}: {scene.count} band(s){marked}, the model takes {wanted} ({names}). "
        f"Choose with --bands, for instance --bands {example}"
    )


def plan_grid(scene: Scene, segmenter: Segmenter, resample: bool) -> tuple[tuple[int, int] | None, str]:
    """Compares ground distances; returns the grid to resample to (None: the scene's own) and a warning."""
    here, trained = scene.pixel_metres, segmenter.info.ground_sampling_distance
    if here is None or trained is None:
        if resample:
            missing = "the scene's pixel size" if here is None else "the model's ground sampling distance"
            raise ConfigError(f"{scene.name}: --resample needs to know {missing}, and it is not stated")
        return None, ""
    factor = here / trained
    if resample:
        if abs(factor - 1) < 0.01:
            return None, ""
        size = max(1, round(scene.height * factor)), max(1, round(scene.width * factor))
        return size, f"resampled from {here:.3g} m a pixel to {trained:.3g} m, as in training"
    if not 1 / GSD_TOLERANCE <= factor <= GSD_TOLERANCE:
        return None, (
            f"{here:.3g} m a pixel, the model was trained at {trained:.3g} m: things look {1 / factor:.2g} times "
            "as large as it knows them; consider --resample"
        )
    return None, ""


def plan_stretch(
    scene: Scene, segmenter: Segmenter, limits: tuple[float, float] | None
) -> Callable[["npt.NDArray[Any]"], "npt.NDArray[Any]"]:
    """Returns what turns the file's values into those the model knows.

    Raises:
        DataError: the types differ and nobody said how they relate.
    """
    wanted = segmenter.info.dtype
    if limits is None:
        if scene.dtype != wanted:
            raise DataError(
                f"{scene.name}: pixels are {scene.dtype}, the model was trained on {wanted}. Say which file "
                "values stand for its darkest and brightest with --stretch, for instance --stretch 0,10000"
            )
        return lambda pixels: pixels
    low, high = limits
    if not low < high:
        raise ConfigError(f"--stretch {low},{high}: give the low value first")
    top = float(getattr(segmenter.network.normalization, "max_value", np.iinfo(wanted).max))

    def stretch(pixels: "npt.NDArray[Any]") -> "npt.NDArray[Any]":
        scaled = (np.nan_to_num(pixels.astype(np.float32), nan=low) - low) * (top / (high - low))
        return np.rint(scaled.clip(0, top)).astype(wanted)

    return stretch

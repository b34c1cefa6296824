"""Which pixel values stand for dark and bright: given in the recipe, or proposed from the pixels."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from d2ls.errors import ConfigError, DataError
from d2ls.window import Window
from sharding.headers import ScannedScene
from sharding.pixel_statistics import PixelSums, Scale
from sharding.raster import open_raster
from sharding.spec import ShardSpec

FULL_RANGE = {"uint8": 255.0, "uint16": 65535.0}

MAX_BEYOND = 0.05
"""Share of clipped pixels of a channel above which there is a warning."""

MAX_UNUSED = 4
"""Factor between `max_value` and the highest value of 16-bit images above which there is a warning."""

_SCENES, _WINDOW = 16, 512  # read for a proposal


def find_scale(
    spec: ShardSpec, bands: Sequence[str], dtype: str, scenes: Sequence[ScannedScene], problems: list[str]
) -> Scale | None:
    """Returns the scale of float images, a pair per channel; None for integers. A missing scale is added to `problems`.

    Raises:
        ConfigError: an impossible value in the spec.
    """
    if dtype != "float32":
        if spec.scale is not None and dtype:
            raise ConfigError(
                f"data.scale: it is for float and signed images, these are {dtype}; data.max_value says which value "
                "stands for 1.0"
            )
        return None
    scale = spec.scale or (((0.0, spec.max_value),) if spec.max_value else None)
    if scale is None:
        problems.append(_proposal(bands, scenes))
        return None
    if spec.scale is not None and spec.max_value is not None:
        raise ConfigError("data.scale and data.max_value: give one of them")
    if len(scale) not in (1, len(bands)):
        raise ConfigError(f"data.scale: {len(scale)} pairs for {len(bands)} band(s) ({', '.join(bands)})")
    for low, high in scale:
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ConfigError(f"data.scale: [{low:g}, {high:g}] is not a low and a higher value")
    return scale * len(bands) if len(scale) == 1 else scale


def full_scale(spec: ShardSpec, dtype: str) -> float:
    """Returns the pixel value that stands for 1.0; 1 for float images, whose statistics are in their own units."""
    return 1.0 if dtype == "float32" else spec.max_value or FULL_RANGE.get(dtype, 1.0)


def range_warnings(
    sums: Iterable[PixelSums], bands: Sequence[str], dtype: str, max_value: float, scale: Scale | None
) -> list[str]:
    """Warns if the given range of pixel values is far from the range of the training pixels.

    Args:
        sums: of the training pixels.
        bands: names of the channels.
        dtype: of the pixels.
        max_value: pixel value that stands for 1.0.
        scale: of float images.
    """
    sums = [item for item in sums if item.count]
    if not sums:
        return []
    if scale is None:
        highest = max(max(item.highest) for item in sums)
        return [_unused_range(highest, max_value)] if _uses_little(dtype, highest, max_value) else []
    warnings = []
    for band, name in enumerate(bands):
        beyond = sum(item.beyond[band] for item in sums) / max(sum(item.count[band] for item in sums), 1)
        if beyond > MAX_BEYOND:
            low, high = scale[band]
            warnings.append(
                f"{beyond:.0%} of the training pixels of band {name} lie outside of data.scale [{low:g}, {high:g}] and "
                "are clipped"
            )
    return warnings


def _uses_little(dtype: str, highest: int, max_value: float) -> bool:
    return dtype == "uint16" and 0 < highest * MAX_UNUSED <= max_value


def _unused_range(highest: int, max_value: float) -> str:
    digits = 10 ** max(len(str(highest)) - 2, 0)
    proposed = math.ceil(highest / digits) * digits
    return (
        f"the highest training pixel is {highest}, data.max_value is {max_value:g}: pictures are dark and "
        f"changes of brightness hardly show. Set data.max_value={proposed}"
    )


def _proposal(bands: Sequence[str], scenes: Sequence[ScannedScene]) -> str:
    """Asks for the scale and gives percentiles of some windows."""
    samples: list[list[npt.NDArray[np.floating]]] = [[] for _ in bands]
    for item in scenes[:: max(1, len(scenes) // _SCENES)]:
        height, width = min(_WINDOW, item.info.height), min(_WINDOW, item.info.width)
        window = Window((item.info.height - height) // 2, (item.info.width - width) // 2, height, width)
        try:
            with open_raster(item.scene.image) as raster:
                pixels, _ = raster.read(window, item.bands)
        except DataError:
            continue  # reported when it is read whole
        for band, values in enumerate(samples):
            values.append(pixels[..., band][np.isfinite(pixels[..., band])])
    by_band = [np.concatenate(values) if values else np.empty(0) for values in samples]
    text = (
        "images are float or signed. Set data.scale to the values that stand for dark and bright (one pair, or a pair "
        "a band; the network clips to them)"
    )
    if not all(len(values) for values in by_band):
        return text
    pairs = [np.percentile(values, (1, 99)) for values in by_band]
    proposed = ", ".join(f"[{low:.4g}, {high:.4g}]" for low, high in pairs)
    return f"{text}. The 1st and 99th percentiles of {', '.join(bands)} are: data.scale=[{proposed}]"

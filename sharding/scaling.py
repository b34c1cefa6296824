"""Which values of an image stand for dark and bright: stated in the recipe, proposed from the pixels."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from d2ls.errors import ConfigError, DataError
from sharding.raster import open_raster
from sharding.spec import ShardSpec
from sharding.tiling import Window

if TYPE_CHECKING:
    from sharding.scan import Scan, ScannedScene
    from sharding.shard_manifest import PixelSums

Scale = tuple[tuple[float, float], ...]
"""Values of float images that stand for dark and bright, a pair a channel."""

FULL_RANGE = {"uint8": 255.0, "uint16": 65535.0}

MANY_BEYOND = 0.05
"""Share of clipped pixels of a channel that is warned about."""

FAR_BELOW = 4
"""Factor between `max_value` and the highest value of 16-bit images that is warned about."""

_SCENES, _WINDOW = 16, 512  # looked at for a proposal


def find_scale(
    spec: ShardSpec, bands: Sequence[str], dtype: str, scenes: "Sequence[ScannedScene]", problems: list[str]
) -> Scale | None:
    """Returns the scale of float images, a pair a channel; None for integers. What is missing goes to `problems`.

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


def value_warnings(sums: Iterable["PixelSums"], scan: "Scan") -> list[str]:
    """Says where the stated range of the pixels is far from what the training pixels hold."""
    seen = [item for item in sums if item.count]
    if not seen:
        return []
    if scan.scale is None:
        return _range_warnings(scan, max(max(item.highest) for item in seen))
    warnings = []
    for band, name in enumerate(scan.bands):
        beyond = sum(item.beyond[band] for item in seen) / max(sum(item.count[band] for item in seen), 1)
        if beyond > MANY_BEYOND:
            low, high = scan.scale[band]
            warnings.append(
                f"{beyond:.0%} of the training pixels of band {name} lie outside of data.scale [{low:g}, {high:g}] and "
                "are clipped"
            )
    return warnings


def _range_warnings(scan: "Scan", highest: int) -> list[str]:
    """Says where 16-bit images use a small part of their stated range."""
    if scan.dtype != "uint16" or not highest or highest * FAR_BELOW > scan.max_value:
        return []
    digits = 10 ** max(len(str(highest)) - 2, 0)
    proposed = math.ceil(highest / digits) * digits
    return [
        f"the highest training pixel is {highest}, data.max_value is {scan.max_value:g}: pictures are dark and "
        f"changes of brightness hardly show. Say data.max_value={proposed}"
    ]


def _proposal(bands: Sequence[str], scenes: "Sequence[ScannedScene]") -> str:
    """Asks for the scale, with the percentiles of some windows."""
    values: list[list[npt.NDArray[np.floating]]] = [[] for _ in bands]
    for item in scenes[:: max(1, len(scenes) // _SCENES)]:
        height, width = min(_WINDOW, item.info.height), min(_WINDOW, item.info.width)
        window = Window((item.info.height - height) // 2, (item.info.width - width) // 2, height, width)
        try:
            with open_raster(item.scene.image) as raster:
                pixels, _ = raster.read(window, item.bands)
        except DataError:
            continue  # named when it is read whole
        for band, found in enumerate(values):
            found.append(pixels[..., band][np.isfinite(pixels[..., band])])
    found = [np.concatenate(band) if band else np.empty(0) for band in values]
    text = (
        "images are float or signed. Say with data.scale which values stand for dark and bright (one pair, or a pair a "
        "band; the network clips to them)"
    )
    if not all(len(band) for band in found):
        return text
    pairs = [np.percentile(band, (1, 99)) for band in found]
    listed = ", ".join(f"[{low:.4g}, {high:.4g}]" for low, high in pairs)
    return f"{text}. The 1st and 99th percentiles of {', '.join(bands)} are: data.scale=[{listed}]"

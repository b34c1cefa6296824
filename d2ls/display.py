"""Pixels of any type and number of bands as pictures that people look at."""

from typing import Any

import numpy as np
import numpy.typing as npt


def displayable(pixels: npt.NDArray[Any], max_value: float = 255.0) -> npt.NDArray[np.uint8]:
    """Makes an RGB picture: 8-bit pixels as they are, others stretched between their 2nd and 98th percentile.

    Args:
        pixels: H W C; the first three bands are shown, of one or two the first as grey. NaN is shown black.
        max_value: value that stands for 1.0; 8-bit pixels of another range are stretched as well.

    Returns:
        H W 3.
    """
    shown = pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels[..., :1], 3, axis=-1)
    if shown.dtype == np.uint8 and max_value == 255.0:
        return np.ascontiguousarray(shown)
    finite = shown[np.isfinite(shown)]
    low, high = np.percentile(finite, (2, 98)) if finite.size else (0.0, 1.0)
    least = 1e-9 if shown.dtype.kind == "f" else 1.0
    scaled = (shown.astype(np.float32) - low) * (255 / max(float(high - low), least))
    return np.nan_to_num(scaled).clip(0, 255).astype(np.uint8)

"""Turns pixels of any type and number of bands into RGB pictures, and draws the text and legends of contact sheets."""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from d2ls.labels import ClassTable

GAP, LINE = 4, 18
"""Pixels between pictures; height of a line of text."""

INK, PAPER = (30, 30, 30), (250, 250, 250)
_ENTRY = 150  # width of an entry of a legend


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


def fitted(picture: npt.NDArray[np.uint8], side: int, *, labels: bool = False) -> Image.Image:
    """Scales an RGB picture (H W 3) so that its longer side has a length; enlarged pixels stay squares.

    Args:
        picture: what to scale.
        side: length of the longer side, in pixels.
        labels: whether it shows labels, whose colours must not be mixed.
    """
    factor = side / max(picture.shape[:2])
    size = (max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor)))
    method = Image.Resampling.BOX if factor < 1 and not labels else Image.Resampling.NEAREST
    return Image.fromarray(picture).resize(size, method)


def write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int = 12) -> None:
    """Writes a line of text; `at` is the left and the upper edge."""
    draw.text(at, text, INK, ImageFont.load_default(size))


def legend_height(classes: ClassTable, width: int) -> int:
    """Returns the height of the legend that `draw_legend` draws."""
    return LINE * -(-(classes.num_classes + 1) // max(1, width // _ENTRY))


def draw_legend(
    draw: ImageDraw.ImageDraw, classes: ClassTable, top: int, width: int, ignored: tuple[int, int, int]
) -> None:
    """Draws the colours and names of the classes, and of what is ignored."""
    entries = [*zip(classes.names, classes.palette, strict=True), ("ignored", ignored)]
    across = max(1, width // _ENTRY)
    for place, (name, color) in enumerate(entries):
        left, line = GAP + (place % across) * _ENTRY, top + (place // across) * LINE
        draw.rectangle((left, line, left + 13, line + 13), color, INK)
        write(draw, (left + 18, line), name[:20])

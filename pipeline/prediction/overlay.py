"""Draws a label map over its image as a small picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from d2ls.display import displayable
from d2ls.labels import IGNORE, ClassTable
from pipeline.prediction.map_writer import save_image
from pipeline.prediction.rows import resampled

if TYPE_CHECKING:
    import numpy.typing as npt

    from pipeline.prediction.rows import Rows
    from sharding.raster.scene import Scene

LONGEST_SIDE = 2048
OPACITY = 0.45


def write_overlay(
    target: Path,
    scene: "Scene",
    bands: Sequence[int],
    rows: "Rows",
    classes: ClassTable,
    comment: str,
    workspace: Path | None = None,
) -> None:
    """Writes a JPEG of at most 2048 pixels per side: the image, half covered with the colours of the classes."""
    factor = min(1.0, LONGEST_SIDE / max(scene.height, scene.width))
    size = max(1, round(scene.height * factor)), max(1, round(scene.width * factor))
    shown = list(bands[:3]) if len(bands) >= 3 else [bands[0]] * 3
    pixels, _ = scene.read((0, size[0]), (0, size[1]), shown, size)
    labels = _thinned(rows, (scene.height, scene.width), size)
    colors = classes.colorize(labels).astype(np.float32)
    opacity = np.where(labels == IGNORE, 0.0, OPACITY)[..., None]
    picture = displayable(pixels) * (1 - opacity) + colors * opacity
    save_image(
        target, Image.fromarray(picture.round().astype(np.uint8)), workspace, quality=90, comment=comment
    )


def _thinned(rows: "Rows", scene: tuple[int, int], size: tuple[int, int]) -> "npt.NDArray[np.uint8]":
    """Takes the nearest pixel of the map for each pixel of the picture."""
    labels = np.full(size, IGNORE, np.uint8)
    for top, block in resampled(rows, scene, size):
        labels[top : top + len(block)] = block
    return labels

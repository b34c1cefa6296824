"""Flips, turns and colour changes, by albumentations."""

import os
import random
from typing import Any

import numpy as np
import numpy.typing as npt

from d2ls.data.transforms import Augmentation

BRIGHTNESS_CONTRAST_LIMIT = 0.25
"""Largest change of brightness and of contrast, as a share (GeoSeg's recipes)."""


def import_albumentations() -> Any:
    """Imports albumentations without its look-up of newer versions, and leaves the environment as it was."""
    name = "NO_ALBUMENTATIONS_UPDATE"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        import albumentations
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
    return albumentations


class Transforms:
    """The albumentations part of an augmentation: flips, quarter turns, brightness and contrast, sharpening.

    Args:
        augmentation: what to change, and how often.
        max_value: value that stands for 1.0; images of more than 8 bits are scaled by it for albumentations.
        scale: in its place, the values of each channel that stand for 0 and 1.
    """

    def __init__(
        self,
        augmentation: Augmentation,
        max_value: float,
        scale: tuple[tuple[float, float], ...] | None = None,
    ) -> None:
        library, limit = import_albumentations(), BRIGHTNESS_CONTRAST_LIMIT
        stages = [
            library.HorizontalFlip(p=augmentation.horizontal_flip),
            library.VerticalFlip(p=augmentation.vertical_flip),
            library.RandomRotate90(p=augmentation.quarter_turns),
            library.RandomBrightnessContrast(limit, limit, p=augmentation.brightness_contrast),
            library.Sharpen(p=augmentation.sharpen),
        ]
        self._compose = library.Compose(
            [stage for stage in stages if stage.p > 0], additional_targets={"beyond": "mask"}, strict=True
        )
        self._colours = augmentation.brightness_contrast > 0 or augmentation.sharpen > 0
        ends = np.array(scale or ((0.0, max_value),), np.float32)
        self._low, self._span = ends[:, 0], ends[:, 1] - ends[:, 0]

    def __call__(
        self, image: npt.NDArray[Any], mask: npt.NDArray[np.uint8], generator: np.random.Generator
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
        """Changes image (H W C, uint8, or float32 with raw values) and labels (H W) in step.

        Values of float images beyond the range, and NaN, are kept as in evaluation, whether colours change or not.

        One generator is shared by all stages: albumentations' `set_random_seed` would give each stage the same
        stream, so that an image is flipped left-right exactly when it is flipped upside down.
        """
        self._compose.set_random_state(generator, random.Random(int(generator.integers(1 << 62))))
        if image.dtype == np.uint8 or not self._colours:
            changed = self._compose(image=image, mask=mask)
            return changed["image"], changed["mask"]
        # albumentations clips colours to 0..1 where it changes them, and only there: what lies beyond goes round it
        scaled = (image - self._low) / self._span
        inside = np.nan_to_num(scaled, nan=0.5).clip(0, 1)
        changed = self._compose(image=inside, mask=mask, beyond=scaled - inside)
        return (changed["image"] + changed["beyond"]) * self._span + self._low, changed["mask"]

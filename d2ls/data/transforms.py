"""Random changes to a training sample: crop, scale, flips, turns and colours."""

import os
import random
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from d2ls.data.reader import SampleView
from d2ls.errors import ConfigError
from d2ls.labels import IGNORE
from d2ls.window import Window

CROP_TRIES = 10
"""Crops drawn until the largest class stays under the limit; the last one is taken in any case."""

BRIGHTNESS_CONTRAST_LIMIT = 0.25
"""Largest change of brightness and of contrast, as a fraction (GeoSeg's recipes)."""

_ANTIALIAS = 0.6  # below this zoom, pixels are averaged instead of interpolated

_PROBABILITIES = (
    "horizontal_flip",
    "vertical_flip",
    "quarter_turns",
    "brightness_contrast",
    "sharpen",
    "mosaic",
)


@dataclass(frozen=True)
class Augmentation:
    """Random changes to a training sample.

    The published recipes copy GeoSeg's RandomScale and SmartCropV1: they scale the whole image, then crop it, and
    draw the crop again if one class fills too much of it. Here the crop is cut first and then scaled. That gives the
    same pixels, except that the window is rounded to whole pixels.

    Attributes:
        crop_size: side of the square crop, in pixels.
        scale: zoom: lowest and highest factor, or with `scale_mode="choice"` the factors to choose from.
        scale_mode: `uniform` draws between lowest and highest, `choice` draws one of the factors.
        max_class_fraction: the crop is drawn again, at most ten times, if one class has at least this share of its
            labelled pixels; None takes the first crop.
        horizontal_flip: probability of a left-right flip.
        vertical_flip: probability of an upside-down flip.
        quarter_turns: probability of a turn by 0, 90, 180 or 270 degrees.
        brightness_contrast: probability of a change of brightness and contrast, each by up to a quarter.
        sharpen: probability of sharpening.
        mosaic: probability that four samples are pieced together.
    """

    crop_size: int = 512
    scale: tuple[float, ...] = (1.0, 1.0)
    scale_mode: Literal["uniform", "choice"] = "uniform"
    max_class_fraction: float | None = None
    horizontal_flip: float = 0.0
    vertical_flip: float = 0.0
    quarter_turns: float = 0.0
    brightness_contrast: float = 0.0
    sharpen: float = 0.0
    mosaic: float = 0.0

    def __post_init__(self) -> None:
        if self.crop_size < 1:
            raise ConfigError(f"crop_size needs at least 1 pixel, got {self.crop_size}")
        if not self.scale or min(self.scale) <= 0:
            raise ConfigError(f"scale factors lie above 0, got {self.scale}")
        if self.scale_mode == "uniform" and (len(self.scale) != 2 or self.scale[0] > self.scale[1]):
            raise ConfigError(f"scale is (lowest, highest) with scale_mode 'uniform', got {self.scale}")
        if self.scale_mode not in ("uniform", "choice"):
            raise ConfigError(f"scale_mode is 'uniform' or 'choice', got {self.scale_mode!r}")
        if self.max_class_fraction is not None and not 0 < self.max_class_fraction <= 1:
            raise ConfigError(
                f"max_class_fraction is a share above 0 up to 1, or None, got {self.max_class_fraction}"
            )
        for name in _PROBABILITIES:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is a probability from 0 to 1, got {getattr(self, name)}")

    def draw_scale(self, generator: np.random.Generator) -> float:
        """Draws the zoom of a sample."""
        if self.scale_mode == "choice":
            return self.scale[int(generator.integers(len(self.scale)))]
        lowest, highest = self.scale
        return float(generator.uniform(lowest, highest))


@dataclass(frozen=True)
class Crop:
    """Where a crop comes from and where it goes.

    Attributes:
        source: window of the sample, before scaling.
        target: where the scaled window lies in the square crop; the rest is padding.
    """

    source: Window
    target: Window


def draw_crop(view: SampleView, augmentation: Augmentation, generator: np.random.Generator) -> Crop:
    """Draws scale and position of the crop of a sample."""
    size, scale = augmentation.crop_size, augmentation.draw_scale(generator)
    height, target_height = _extent(view.height, size, scale)
    width, target_width = _extent(view.width, size, scale)
    target = Window(
        int(generator.integers(size - target_height + 1)),
        int(generator.integers(size - target_width + 1)),
        target_height,
        target_width,
    )
    for _ in range(1 if augmentation.max_class_fraction is None else CROP_TRIES):
        top = int(generator.integers(view.height - height + 1))
        left = int(generator.integers(view.width - width + 1))
        window = Window(top, left, height, width)
        if augmentation.max_class_fraction is None or _balanced(
            view.mask(window), augmentation.max_class_fraction
        ):
            break
    return Crop(window, target)


def cut(
    view: SampleView, crop: Crop, size: int, dtype: np.dtype[Any]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
    """Cuts a crop, then scales it. Image and labels share the window and keep their pixel centres aligned.

    Args:
        view: what to cut from.
        crop: source window and target.
        size: side of the result; outside the target the image is 0 and the labels are 255.
        dtype: type of the resulting image.

    Returns:
        Image (size size C) and labels (size size).
    """
    image, mask = view.image(crop.source), view.mask(crop.source)
    height, width = crop.target.height, crop.target.width
    if (height, width) != mask.shape:
        shrinks = height < _ANTIALIAS * mask.shape[0]
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        image = _resized(image, (height, width), method)
        mask = np.asarray(cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)
    if (height, width) == (size, size):
        return image.astype(dtype, copy=False), mask
    return pad(image, mask, (crop.target.row, crop.target.column), size, dtype)


def pad(
    image: npt.NDArray[Any], mask: npt.NDArray[np.uint8], at: tuple[int, int], size: int, dtype: np.dtype[Any]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
    """Puts image (h w C) and labels (h w) into a square at a row and column; around them lie 0 and 255."""
    place = Window(*at, *mask.shape).slices
    padded = np.zeros((size, size, image.shape[2]), dtype)
    padded[place] = image
    labels = np.full((size, size), IGNORE, np.uint8)
    labels[place] = mask
    return padded, labels


def import_albumentations() -> Any:
    """Imports albumentations without its look-up of newer versions, then restores the environment."""
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
    """Flips, quarter turns, brightness and contrast, and sharpening, by albumentations.

    Args:
        augmentation: what to change, and how often.
        max_value: pixel value that represents 1.0; images of more than 8 bits are divided by it for albumentations.
        scale: instead of `max_value`, the values of each channel that represent 0 and 1.
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
        """Changes image (H W C, uint8, or float32 with raw values) and labels (H W) alike.

        Values of float images outside the range, and NaN, are preserved whether colours change or not.

        All stages share one generator. With albumentations' `set_random_seed` each stage would get the same stream:
        an image would be flipped left-right exactly when it is flipped upside down.
        """
        self._compose.set_random_state(generator, random.Random(int(generator.integers(1 << 62))))
        if image.dtype == np.uint8 or not self._colours:
            changed = self._compose(image=image, mask=mask)
            return changed["image"], changed["mask"]
        # albumentations clips colours to 0..1 when it changes them; `beyond` keeps the values outside that range
        scaled = (image - self._low) / self._span
        inside = np.nan_to_num(scaled, nan=0.5).clip(0, 1)
        changed = self._compose(image=inside, mask=mask, beyond=scaled - inside)
        return (changed["image"] + changed["beyond"]) * self._span + self._low, changed["mask"]


def _class_counts(mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Returns the 256 pixel counts of a label window (h w, uint8)."""
    counts: npt.NDArray[np.int64] = cv2.calcHist([mask], [0], None, [256], [0, 256]).astype(np.int64).ravel()
    return counts


def _extent(length: int, size: int, scale: float) -> tuple[int, int]:
    """Returns how many source pixels a crop takes along one axis, and how many pixels of the crop they fill."""
    needed = max(1, round(size / scale))
    if needed <= length:
        return needed, size
    return length, min(size, max(1, round(length * scale)))


def _balanced(mask: npt.NDArray[np.uint8], limit: float) -> bool:
    counts = _class_counts(mask)[:IGNORE]
    return bool(np.count_nonzero(counts) > 1 and counts.max() < limit * counts.sum())


def _resized(image: npt.NDArray[Any], size: tuple[int, int], method: int) -> npt.NDArray[Any]:
    """Scales an image (H W C); OpenCV takes four channels at a time."""
    groups = [image[..., first : first + 4] for first in range(0, image.shape[2], 4)]
    scaled = [cv2.resize(group, size[::-1], interpolation=method).reshape(*size, -1) for group in groups]
    return np.concatenate(scaled, axis=2) if len(scaled) > 1 else scaled[0]

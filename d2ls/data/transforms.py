"""What is changed at random in a training sample, and where its crop lies. The pixels are moved in `samples`."""

from dataclasses import dataclass
from typing import Literal, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from d2ls.data.orders import Box
from d2ls.errors import ConfigError
from d2ls.labels import IGNORE

CROP_TRIES = 10
"""Crops tried for one whose largest class stays under the limit; the last one is taken as it is."""

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

    The published recipes scale the whole image and cut a crop of it, when a class does not fill too much of the crop
    (GeoSeg's RandomScale and SmartCropV1; D2LS copies them). Here the crop is cut first and scaled then: the same
    pixels up to the rounding of the window.

    Attributes:
        crop_size: side of the square crop, in pixels.
        scale: zoom: lowest and highest factor, or with `scale_mode="choice"` the factors to choose from.
        scale_mode: `uniform` draws between lowest and highest, `choice` draws one of the factors.
        max_class_fraction: a crop whose largest class has this share of its labelled pixels or more is drawn again, ten
            times at most; None takes the first.
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


class Labelled(Protocol):
    """A picture whose labels can be looked at window by window."""

    height: int
    width: int

    def mask(self, box: Box) -> npt.NDArray[np.uint8]:
        """Returns the labels of a window, h w."""


@dataclass(frozen=True)
class Crop:
    """Where a crop comes from and where it goes.

    Attributes:
        source: window of the picture, before scaling.
        target: where the scaled window stands in the square crop; beyond it lies padding.
    """

    source: Box
    target: Box


def draw_crop(picture: Labelled, augmentation: Augmentation, generator: np.random.Generator) -> Crop:
    """Draws scale and place of the crop of a sample."""
    size, scale = augmentation.crop_size, augmentation.draw_scale(generator)
    height, target_height = _extent(picture.height, size, scale)
    width, target_width = _extent(picture.width, size, scale)
    target = (
        int(generator.integers(size - target_height + 1)),
        int(generator.integers(size - target_width + 1)),
        target_height,
        target_width,
    )
    for _ in range(1 if augmentation.max_class_fraction is None else CROP_TRIES):
        top = int(generator.integers(picture.height - height + 1))
        left = int(generator.integers(picture.width - width + 1))
        box = (top, left, height, width)
        if augmentation.max_class_fraction is None or _balanced(
            picture.mask(box), augmentation.max_class_fraction
        ):
            break
    return Crop(box, target)


def class_counts(mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Returns the 256 pixel counts of a label window (h w, uint8)."""
    counts: npt.NDArray[np.int64] = cv2.calcHist([mask], [0], None, [256], [0, 256]).astype(np.int64).ravel()
    return counts


def _extent(length: int, size: int, scale: float) -> tuple[int, int]:
    """Returns how many source pixels make the crop, and how many pixels of the crop they fill."""
    wanted = max(1, round(size / scale))
    if wanted <= length:
        return wanted, size
    return length, min(size, max(1, round(length * scale)))


def _balanced(mask: npt.NDArray[np.uint8], limit: float) -> bool:
    counts = class_counts(mask)[:IGNORE]
    return bool(np.count_nonzero(counts) > 1 and counts.max() < limit * counts.sum())

"""Test-time augmentation: predicts several views of an image, transforms the predictions back and averages them.

The name of a preset lists its transforms. Each view costs a forward pass; the cost of a scaled view grows with its
area.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from d2ls.errors import ConfigError

SCALES = (0.75, 1.0, 1.25)


@dataclass(frozen=True)
class TTATransform:
    """One view of an image: mirrored, then turned, then scaled.

    Attributes:
        mirrored: flipped left to right.
        turns: quarter turns counter-clockwise, 0 to 3.
        scale: factor on height and width.
    """

    mirrored: bool = False
    turns: int = 0
    scale: float = 1.0

    def apply(self, images: Tensor) -> Tensor:
        """Transforms images, B C H W; float where they are resized."""
        if self.mirrored:
            images = images.flip(-1)
        if self.turns:
            images = torch.rot90(images, self.turns, (-2, -1))
        if self.scale == 1.0:
            return images
        size = [max(1, round(side * self.scale)) for side in images.shape[-2:]]
        return F.interpolate(images.float(), size=size, mode="bilinear", align_corners=False, antialias=True)

    def undo(self, maps: Tensor, height: int, width: int) -> Tensor:
        """Transforms maps of a view (B K H' W') back to the orientation and size of the image."""
        if self.scale != 1.0:
            size = [width, height] if self.turns % 2 else [height, width]
            maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
        if self.turns:
            maps = torch.rot90(maps, -self.turns, (-2, -1))
        return maps.flip(-1) if self.mirrored else maps


_FLIPS = (
    TTATransform(),
    TTATransform(mirrored=True),
    TTATransform(turns=2),
    TTATransform(mirrored=True, turns=2),
)

PRESETS: dict[str, tuple[TTATransform, ...]] = {
    "none": (TTATransform(),),
    # a half turn of the mirrored image is the image upside down, so these four are none, left-right, both, up-down
    "flips": _FLIPS,
    "flips_turns": tuple(
        TTATransform(mirrored, turns) for mirrored, turns in product((False, True), range(4))
    ),
    "flips_scales": tuple(TTATransform(v.mirrored, v.turns, s) for v, s in product(_FLIPS, SCALES)),
}


def tta_transforms(preset: str) -> tuple[TTATransform, ...]:
    """Returns the views of a preset.

    Raises:
        ConfigError: no such preset.
    """
    if preset not in PRESETS:
        raise ConfigError(f"test-time augmentation {preset!r}: no such preset. Allowed: {', '.join(PRESETS)}")
    return PRESETS[preset]


def cost(preset: str) -> float:
    """Returns the cost of a preset relative to one plain forward pass, by number of pixels."""
    return sum(view.scale**2 for view in tta_transforms(preset))


def average_predictions(
    probabilities: Callable[[Tensor], Tensor], images: Tensor, chosen: tuple[TTATransform, ...]
) -> Tensor:
    """Averages the class probabilities over views.

    Args:
        probabilities: B C H W to B K H W, summing to one over K.
        images: raw pixels, B C H W. Resized views spread NaN: see `Normalization.fill_missing`.
        chosen: the views, equally weighted.

    Returns:
        B K H W.
    """
    height, width = images.shape[-2:]
    total: Tensor | None = None
    for view in chosen:
        seen = view.undo(probabilities(view.apply(images)), height, width)
        total = seen if total is None else total + seen
    if total is None:
        raise ConfigError("test-time augmentation needs at least one view")
    return total / len(chosen) if len(chosen) > 1 else total

"""Normalisation of raw pixels, the first layer of every network."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

import timm
import torch
from torch import Tensor, nn

from d2ls.errors import ConfigError


class Normalization(nn.Module):
    """Computes (images / max_value - mean) / std for each band.

    With `scale`, images are clipped to it first, and NaN (a band without data) becomes 0, the mean.

    The buffers are not persistent: the values belong to the configuration (`to_json`), not to the weights.

    Args:
        mean: one value per band, in units of `max_value` (0..1 for full range).
        std: one positive value per band, same units.
        max_value: the value that counts as 1: 255 for 8-bit images, 65535 for 16-bit ones, 1 for float ones.
        scale: lowest and highest value of each band, for float images.

    Raises:
        ConfigError: uneven lengths, a value that cannot be divided by, or a lowest value that is not below the highest.
    """

    mean: Tensor
    std: Tensor

    low: Tensor | None
    high: Tensor | None

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        max_value: float = 255.0,
        scale: Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean:
            raise ConfigError(
                f"normalisation needs one mean and one std per band, got {len(mean)} and {len(std)}"
            )
        if min(std) <= 0 or max_value <= 0:
            raise ConfigError(
                f"normalisation divides by std {tuple(std)} and max_value {max_value}: both must be > 0"
            )
        if scale is not None and (len(scale) != len(mean) or any(low >= high for low, high in scale)):
            raise ConfigError(
                f"normalisation needs a lowest and a higher highest value per band, got {scale}"
            )
        self.values: dict[str, Any] = {
            "mean": [*map(float, mean)],
            "std": [*map(float, std)],
            "max_value": float(max_value),
        }
        self._hold("mean", mean)
        self._hold("std", std)
        self._hold("low", None if scale is None else [low for low, _ in scale])
        self._hold("high", None if scale is None else [high for _, high in scale])
        if scale is not None:
            self.values["scale"] = [[float(low), float(high)] for low, high in scale]
        self.max_value = float(max_value)

    def _hold(self, name: str, values: Sequence[float] | None) -> None:
        tensor = None if values is None else torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
        self.register_buffer(name, tensor, persistent=False)

    @property
    def bands(self) -> int:
        """Number of bands."""
        return len(self.mean)

    def forward(self, images: Tensor) -> Tensor:
        """Normalises images (B C H W, uint8, uint16 or float) to float32 of the same shape."""
        images = images.to(torch.float32)
        if self.low is None or self.high is None:
            return (images / self.max_value - self.mean) / self.std
        clipped = images.clamp(self.low, self.high)
        return torch.nan_to_num((clipped / self.max_value - self.mean) / self.std)

    def fill_missing(self, images: Tensor) -> Tensor:
        """Prepares float images for resizing, which would spread NaN and values far outside `scale`.

        Args:
            images: raw pixels, B C H W float.

        Returns:
            The images as raw pixels, clipped to `scale` where there is one, with the mean instead of NaN. `forward`
            maps them to the same values as before, up to rounding.
        """
        if self.low is not None and self.high is not None:
            images = images.clamp(self.low, self.high)
        return torch.where(images.isnan(), self.mean * self.max_value, images)

    def to_json(self) -> dict[str, Any]:
        """Returns plain values: mean, std, max_value, and scale where there is one."""
        copied: dict[str, Any] = json.loads(json.dumps(self.values))
        return copied

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`."""
        return cls(values["mean"], values["std"], values.get("max_value", 255.0), values.get("scale"))

    def extra_repr(self) -> str:
        """Shows the values in `print(model)`."""
        return ", ".join(f"{name}={value}" for name, value in self.values.items())


def backbone_normalization(backbone: str) -> Normalization:
    """Returns the three-band normalisation that timm's weights of a backbone were trained with.

    Raises:
        ConfigError: timm knows no such backbone, or names no three-band values for it.
    """
    try:
        described = timm.get_pretrained_cfg(backbone)
    except RuntimeError as error:
        raise ConfigError(f"backbone {backbone!r}: {error}") from error
    if described is None or len(described.mean) != 3:
        raise ConfigError(f"timm names no three-band normalisation for backbone {backbone!r}")
    return Normalization(described.mean, described.std)

"""Input normalisation: explicit, and carried by the model."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

import timm
import torch
from torch import Tensor, nn

from d2ls.errors import ConfigError


class Normalization(nn.Module):
    """Computes (images / max_value - mean) / std for each band.

    The buffers are not persistent: the values belong to the configuration (`to_json`), not to the weights.

    Args:
        mean: one value a band, in units of `max_value` (0..1 for full range).
        std: one positive value a band, same units.
        max_value: the value that counts as 1: 255 for 8-bit images, 65535 for 16-bit ones, 1 for reflectances.

    Raises:
        ConfigError: uneven lengths, or a value that cannot be divided by.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], max_value: float = 255.0) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean:
            raise ConfigError(
                f"normalisation needs one mean and one std a band, got {len(mean)} and {len(std)}"
            )
        if min(std) <= 0 or max_value <= 0:
            raise ConfigError(
                f"normalisation divides by std {tuple(std)} and max_value {max_value}: both must be > 0"
            )
        self.values = {"mean": [*map(float, mean)], "std": [*map(float, std)], "max_value": float(max_value)}
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.max_value = float(max_value)

    @property
    def bands(self) -> int:
        """Number of bands."""
        return len(self.mean)

    def forward(self, images: Tensor) -> Tensor:
        """Normalises images (B C H W, uint8, uint16 or float) to float32 of the same shape."""
        return (images.to(torch.float32) / self.max_value - self.mean) / self.std

    def to_json(self) -> dict[str, Any]:
        """Returns plain values: mean, std, max_value."""
        copied: dict[str, Any] = json.loads(json.dumps(self.values))
        return copied

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`."""
        return cls(values["mean"], values["std"], values.get("max_value", 255.0))

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

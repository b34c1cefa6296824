"""Positional encoding by random Fourier features."""

import math

import torch
from torch import Tensor, nn


class FourierPosition(nn.Module):
    """Encodes pixel centres: (x, y) in 0..1, 2c - 1, times a Gaussian matrix, times 2 pi, sine and cosine.

    The Gaussian matrix is drawn at construction and is part of the checkpoint.
    """

    frequencies: Tensor

    def __init__(self, embed_dim: int = 256) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(2, embed_dim // 2))

    def forward(self, height: int, width: int) -> Tensor:
        """Returns the encoding of a height x width map: h w C, sines then cosines, in the dtype of the buffer."""
        with torch.autocast(self.frequencies.device.type, enabled=False):
            across = _centres(width, self.frequencies)[:, None] * self.frequencies[0]
            down = _centres(height, self.frequencies)[:, None] * self.frequencies[1]
            angles = (down[:, None] + across[None]) * (2 * math.pi)
            return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _centres(count: int, like: Tensor) -> Tensor:
    """Pixel centres of a line of `count` pixels, in -1..1."""
    return (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) / count * 2 - 1

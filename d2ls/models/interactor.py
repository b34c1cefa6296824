"""Dictionary and pixel features attend to each other, stage after stage; and the positions of pixels."""

import math

import torch
from torch import Tensor, nn

from d2ls.models.attention import DictionaryToPixelAttention, PixelToDictionaryAttention, Route


class DictionaryUpdate(nn.Module):
    """The dictionary attends to the pixels: D <- LN(D + attention(q = D + D0, k = E + P, v = E))."""

    def __init__(self, embed_dim: int, heads: int, route: Route) -> None:
        super().__init__()
        self.attention = DictionaryToPixelAttention(embed_dim, heads, route)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-5)

    def forward(
        self, dictionary: Tensor, initial: Tensor, features: Tensor, position: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the refined dictionary D (B S K C), and the pixel features E (B T N C) unchanged."""
        attended, features = self.attention(dictionary + initial, features, position)
        return self.norm(dictionary + attended), features


class Stage(nn.Module):
    """One interactor stage: the dictionary attends to the pixels, then the pixels attend to the dictionary."""

    def __init__(self, embed_dim: int, heads: int, route: Route) -> None:
        super().__init__()
        self.read_pixels = DictionaryUpdate(embed_dim, heads, route)
        self.read_dictionary = PixelToDictionaryAttention(embed_dim, heads, route)

    def forward(
        self, dictionary: Tensor, initial: Tensor, features: Tensor, position: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the refined D (B S K C) and E (B S N C; the given one may be B T N C)."""
        dictionary, features = self.read_pixels(dictionary, initial, features, position)
        features = self.read_dictionary(features, position, dictionary + initial, dictionary)
        return dictionary, features


class Interactor(nn.Module):
    """L stages and a closing attention of the dictionary, for all branches at once.

    Args:
        stages: L; with 0 only the closing attention remains.
        embed_dim: C.
        heads: H.
        route: how the attentions are computed; the results are equal.
    """

    def __init__(self, stages: int, embed_dim: int, heads: int, route: Route) -> None:
        super().__init__()
        self.stages = nn.ModuleList(Stage(embed_dim, heads, route) for _ in range(stages))
        self.closing = DictionaryUpdate(embed_dim, heads, route)

    def forward(self, initial: Tensor, features: Tensor, position: Tensor) -> tuple[list[Tensor], Tensor]:
        """Refines dictionary and pixel features.

        Args:
            initial: D0 of every branch, B S K C.
            features: E0, B 1 N C, shared by the branches.
            position: P, N C.

        Returns:
            The dictionaries (D0, one per stage, the closing one; B S K C each), and E, B S N C (B 1 N C where L = 0).
        """
        dictionaries = [initial]
        for stage in self.stages:
            dictionary, features = stage(dictionaries[-1], initial, features, position)
            dictionaries.append(dictionary)
        dictionary, features = self.closing(dictionaries[-1], initial, features, position)
        return [*dictionaries, dictionary], features


class FourierPosition(nn.Module):
    """Encodes pixel centres: (x, y) in 0..1, 2c - 1, times a Gaussian matrix, times 2 pi, sine and cosine.

    The Gaussian matrix is drawn at construction and is a part of the checkpoint.
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

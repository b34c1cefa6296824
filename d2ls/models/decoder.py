"""From refined pixel features and class vectors to logits at input resolution."""

import torch
from torch import Tensor, nn

from d2ls.models import pixel_ops

SUB_PIXELS = 16
"""Consecutive channels of E that the two pixel shuffles turn into the 4 x 4 sub-pixels of one pixel."""


class Upsampler(nn.Module):
    """PixelShuffle 2, channel LayerNorm, GELU, PixelShuffle 2, GELU, and the product with K vectors of C/16 channels.

    Args:
        embed_dim: C, a multiple of 16.
    """

    def __init__(self, embed_dim: int = 256) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim // 4, eps=1e-6)

    def forward(self, features: Tensor, vectors: Tensor, size: tuple[int, int]) -> Tensor:
        """Computes logits (G K 4*height 4*width) from E (G N C) and class vectors (G K C/16)."""
        weight, bias = (vector.view(-1, 4).t().flatten() for vector in (self.norm.weight, self.norm.bias))
        return pixel_ops.upsample(features, vectors, weight, bias, self.norm.eps, size)


class Decoder(nn.Module):
    """Upsamples E, projects D by a three-layer MLP (C -> C -> C -> C/16), and multiplies the two."""

    def __init__(self, embed_dim: int = 256) -> None:
        super().__init__()
        self.upsampler = Upsampler(embed_dim)
        self.project = nn.Sequential(
            nn.Linear(embed_dim, embed_dim),
            nn.ReLU(),
            nn.Linear(embed_dim, embed_dim),
            nn.ReLU(),
            nn.Linear(embed_dim, embed_dim // 16),
        )

    def forward(self, features: Tensor, dictionary: Tensor, size: tuple[int, int]) -> Tensor:
        """Computes logits of every branch.

        Args:
            features: E, B S N C, or B 1 N C where the branches share it.
            dictionary: B S K C.
            size: height and width of the map; N is their product.

        Returns:
            B S K 4*height 4*width.
        """
        B, S, K = dictionary.shape[:3]
        T = features.shape[1]
        vectors = self.project(dictionary).reshape(B * T, S // T * K, -1)
        return self.upsampler(features.flatten(0, 1), vectors, size).view(B, S, K, 4 * size[0], 4 * size[1])


class PlainDecoder(nn.Module):
    """The head without a dictionary: the same upsampler and a 1x1 convolution."""

    def __init__(self, num_classes: int, embed_dim: int = 256) -> None:
        super().__init__()
        self.upsampler = Upsampler(embed_dim)
        self.classify = nn.Linear(embed_dim // 16, num_classes)

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Computes logits (B K 4*height 4*width) from pixel features (B N C)."""
        vectors = self.classify.weight.expand(features.shape[0], -1, -1)
        return self.upsampler(features, vectors, size) + self.classify.bias[:, None, None]


@torch.no_grad()
def equalize_sub_pixels(layer: nn.Linear) -> None:
    """Gives the 16 sub-pixels of a pixel equal weights: each row that writes E becomes the first of its 16.

    Where this is done to all layers that write E, the logits of an untrained network are constant over 4 x 4 pixels.
    The norm of the upsampler then sees C/16 different values, which should be more than two.
    Source: ICNR, Aitken et al. 2017 (arXiv 1707.02937).

    Args:
        layer: writes E or is added to it; C outputs in the order of `pixel_ops.upsample`.
    """
    for values in (layer.weight, layer.bias):
        if values is not None:
            blocks = values.view(-1, SUB_PIXELS, *values.shape[1:])
            blocks.copy_(blocks[:, :1].clone().expand_as(blocks))

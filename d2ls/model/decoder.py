"""From refined pixel features and class vectors to logits at input resolution."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Upsampler(nn.Module):
    """PixelShuffle 2, channel LayerNorm, GELU, PixelShuffle 2, GELU, and the product with K vectors of C/16 channels.

    A pixel shuffle only renames elements, so nothing is moved before the last step: the 16 sub-pixels of a pixel stay
    beside each other in memory, and only the K logits are laid out at input resolution.

    Args:
        embed_dim: C, a multiple of 16.
    """

    def __init__(self, embed_dim: int = 256) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim // 4, eps=1e-6)

    def forward(self, features: Tensor, vectors: Tensor, size: tuple[int, int]) -> Tensor:
        """Computes logits.

        Args:
            features: E, G N C with N = height * width; channels in the order that PixelShuffle reads: C/16, then the
                row and column of the second shuffle, then those of the first.
            vectors: G K C/16.
            size: height and width of the map.

        Returns:
            G K 4*height 4*width.
        """
        G, N, C = features.shape
        height, width = size
        sub_pixels = features.view(G, N, C // 16, 4, 4).transpose(2, 4).reshape(G, N * 4, C // 4)
        weight, bias = (each.view(-1, 4).t().flatten() for each in (self.norm.weight, self.norm.bias))
        normed = F.layer_norm(sub_pixels, (C // 4,), weight, bias, self.norm.eps)
        logits = torch.bmm(F.gelu(F.gelu(normed)).view(G, N * 16, C // 16), vectors.mT)
        shaped = logits.view(G, height, width, 2, 2, 2, 2, -1)
        return shaped.permute(0, 7, 1, 3, 5, 2, 4, 6).reshape(G, -1, 4 * height, 4 * width)


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
        vectors = self.classify.weight.expand(len(features), -1, -1)
        return self.upsampler(features, vectors, size) + self.classify.bias[:, None, None]

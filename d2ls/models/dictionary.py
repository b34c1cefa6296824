"""Class vectors: one set learned for all images (static), and one mixed for each image (dynamic)."""

import torch
from torch import Tensor, nn


class Modulator(nn.Module):
    """Weighs the R candidates of every class by the deepest map of an image.

    Args:
        channels: channels C4 of the deepest map.
        num_classes: K.
        candidates: R, at least 2.
        embed_dim: C.
    """

    def __init__(self, channels: int, num_classes: int, candidates: int = 4, embed_dim: int = 256) -> None:
        super().__init__()
        half = embed_dim // 2
        self.project = nn.Linear(channels, embed_dim)
        self.peak = nn.Linear(half, half)
        self.average = nn.Linear(half, half)
        self.weigh = nn.Sequential(
            nn.Linear(embed_dim, 2 * embed_dim), nn.ReLU(), nn.Linear(2 * embed_dim, num_classes * candidates)
        )
        self.candidates = candidates

    def forward(self, deepest: Tensor) -> Tensor:
        """Computes the mixing weights.

        Args:
            deepest: F4, B C4 h w.

        Returns:
            B K R, positive, summing to one over R; float32.
        """
        first, second = self.project(deepest.flatten(2).transpose(1, 2)).chunk(2, dim=-1)
        # Not amax: its gradient compares values, and a compiled one compares bfloat16 with float32, which gives NaN.
        peak = first.max(dim=1).values
        pooled = torch.cat([self.peak(peak), self.average(second.mean(dim=1))], dim=-1)
        scores = self.weigh(pooled).unflatten(-1, (-1, self.candidates))
        return scores.float().softmax(dim=-1)


class StaticDictionary(nn.Module):
    """A learned vector for each class."""

    def __init__(self, num_classes: int, embed_dim: int = 256) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(num_classes, embed_dim))

    def forward(self) -> Tensor:
        """Returns the class vectors, K C."""
        return self.vectors


class DynamicDictionary(nn.Module):
    """Expands every static class vector to R candidates and mixes them for each image."""

    def __init__(self, candidates: int = 4, embed_dim: int = 256) -> None:
        super().__init__()
        self.expand = nn.Linear(embed_dim, candidates * embed_dim)
        self.candidates = candidates

    def forward(self, static: Tensor, mixing: Tensor) -> Tensor:
        """Computes D0.

        Args:
            static: class vectors, K C.
            mixing: weights of the candidates, B K R.

        Returns:
            Class vectors of each image, B K C.
        """
        candidates = self.expand(static).unflatten(-1, (self.candidates, -1))
        return torch.einsum("bkr,krc->bkc", mixing.to(candidates.dtype), candidates)

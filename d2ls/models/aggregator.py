"""From four backbone maps to one map of pixel features, E0."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Aggregator(nn.Module):
    """Projects each map to C, resizes it to stride 4, concatenates (deepest first) and mixes by a 1x1 convolution.

    All of this is linear, and resizing commutes with a linear map over channels. So the convolution is split into one
    C x C block per map. Each block is multiplied with the projection of its map, and the product is applied at the
    map's own resolution. The resized results are summed; no concatenated map exists.

    Args:
        channels: channels C_i of the four maps, shallowest first.
        embed_dim: C.
    """

    def __init__(self, channels: Sequence[int], embed_dim: int = 256) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(width, embed_dim) for width in channels)
        self.mix = nn.Linear(len(channels) * embed_dim, embed_dim, bias=False)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Computes E0.

        Args:
            maps: F1..F4, B C_i h_i w_i, shallowest first.

        Returns:
            B C h w at the resolution of F1.
        """
        layers = [layer for layer in self.projections if isinstance(layer, nn.Linear)]
        blocks = self.mix.weight.chunk(len(layers), dim=1)[::-1]
        weights = [block @ layer.weight for block, layer in zip(blocks, layers, strict=True)]
        bias = torch.stack([block @ layer.bias for block, layer in zip(blocks, layers, strict=True)]).sum(0)
        fused = project(maps[0], weights[0], bias)
        for features, weight in zip(maps[1:], weights[1:], strict=True):
            # Not in place: `fused` is a view, and autograd would copy its whole gradient for each map.
            fused = fused + resize(project(features, weight), maps[0])
        return fused


class DeepestOnly(nn.Module):
    """Stands in for the aggregator in ablations: the projection of the deepest map, resized to stride 4."""

    def __init__(self, channels: Sequence[int], embed_dim: int = 256) -> None:
        super().__init__()
        self.projection = nn.Linear(channels[-1], embed_dim)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Computes E0 (B C h w at the resolution of F1) from the last of the maps."""
        return resize(project(maps[-1], self.projection.weight, self.projection.bias), maps[0])


def project(features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Applies a linear map over channels: B I h w by weight O I gives B O h w, channels last in memory."""
    return F.linear(features.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)


def resize(features: Tensor, like: Tensor) -> Tensor:
    """Resizes B C h w bilinearly (align_corners false) to the height and width of another map."""
    return F.interpolate(features, size=like.shape[-2:], mode="bilinear", align_corners=False)

"""UNetFormer: a decoder whose blocks add window attention to convolutions.

Source: Wang et al. 2022, UNetFormer: A UNet-like transformer for efficient semantic segmentation of remote sensing
urban scene imagery, ISPRS Journal 190 (arXiv 2109.08937), section 3. Written from the paper; no auxiliary head.

With equal weights it computes what the authors' code (GeoSeg) computes, except: near the edges of a map windows and
averages repeat the last row and column (theirs: reflection, and zeros in the averages); the channel weights of the
refinement head use a quarter of the channels, as the paper says (theirs: a sixteenth); the dropout in front of the
classifier drops single values (theirs: whole channels), and the classifier has a bias.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.pos_embed_rel import gen_relative_position_index
from torch import Tensor, nn

WIDTH, HEADS, WINDOW = 64, 8, 8
EXPANSION, REDUCTION = 4, 4
DROPOUT = 0.1
EPS = 1e-8


class UNetFormerDecoder(nn.Module):
    """Three global-local blocks from stride 32 to stride 8, and the feature refinement head at stride 4.

    Args:
        channels: channels of the four maps, shallowest first.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        *skips, deepest = channels
        self.enter = conv_norm(deepest, WIDTH, 1)
        self.blocks = nn.ModuleList(GlobalLocalBlock() for _ in skips)
        self.fusions = nn.ModuleList(WeightedFusion(width) for width in reversed(skips))
        self.refine = FeatureRefinement()

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Computes pixel features.

        Args:
            features: ends with F1..F4, B C_i h_i w_i, strides 4, 8, 16, 32.

        Returns:
            B 64 h w at the resolution of F1.
        """
        *skips, deepest = features[-4:]
        fused = self.enter(deepest)
        for block, fusion, skip in zip(self.blocks, self.fusions, reversed(skips), strict=True):
            fused = fusion(block(fused), skip)
        refined: Tensor = self.refine(fused)
        return refined


class UNetFormerHead(nn.Sequential):
    """From pixel features at stride 4 to logits at input resolution."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(
            conv_norm(WIDTH, WIDTH, 3),
            nn.ReLU6(),
            nn.Dropout(DROPOUT),
            nn.Conv2d(WIDTH, num_classes, 1),
            nn.Upsample(scale_factor=4, mode="bilinear"),
        )


class GlobalLocalBlock(nn.Module):
    """Global-local attention and a perceptron, each behind a batch norm and with a residual connection (B 64 h w)."""

    def __init__(self) -> None:
        super().__init__()
        self.first_norm, self.second_norm = nn.BatchNorm2d(WIDTH), nn.BatchNorm2d(WIDTH)
        self.attention = GlobalLocalAttention()
        self.perceptron = nn.Sequential(
            nn.Conv2d(WIDTH, EXPANSION * WIDTH, 1), nn.ReLU6(), nn.Conv2d(EXPANSION * WIDTH, WIDTH, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Refines features of any height and width."""
        features = features + self.attention(self.first_norm(features))
        refined: Tensor = features + self.perceptron(self.second_norm(features))
        return refined


class GlobalLocalAttention(nn.Module):
    """Sums convolutions (local) and window attention with context across windows (global), and projects the sum.

    Attention stays within windows of 8 x 8 pixels. Neighbouring windows then exchange information through the
    cross-shaped window context interaction: the sum of averages over 8 pixels down and over 8 pixels across.
    """

    relative: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.local = nn.ModuleList([conv_norm(WIDTH, WIDTH, 3), conv_norm(WIDTH, WIDTH, 1)])
        self.queries_keys_values = nn.Conv2d(WIDTH, 3 * WIDTH, 1, bias=False)
        self.position = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, HEADS))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.register_buffer("relative", gen_relative_position_index((WINDOW, WINDOW)), persistent=False)
        self.project = nn.Sequential(
            nn.ZeroPad2d((WINDOW // 2 - 1, WINDOW // 2) * 2),
            nn.Conv2d(WIDTH, WIDTH, WINDOW, groups=WIDTH, bias=False),
            nn.BatchNorm2d(WIDTH),
            nn.Conv2d(WIDTH, WIDTH, 1, bias=False),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Computes what is added to B 64 h w; windows beyond the map repeat its last row and column."""
        height, width = features.shape[-2:]
        attended = self._windows(features)
        context = _average(attended, (WINDOW, 1), (height, width)) + _average(
            attended, (1, WINDOW), (height, width)
        )
        near = torch.stack([branch(features) for branch in self.local]).sum(0)
        projected: Tensor = self.project(near + context)
        return projected

    def _windows(self, features: Tensor) -> Tensor:
        """Attends within windows; from B 64 h w to the map of at least two windows down and across, B 64 H W."""
        B, C, *sides = features.shape
        # torch.export would make a program for one window and another one for more.
        counts: list[Any] = [torch.sym_max(_windows_of(side), 2) for side in sides]
        down, across = counts
        for axis, count, side in zip((-2, -1), counts, sides, strict=True):
            features = _take(features, axis, 0, count * WINDOW, side)
        split = self.queries_keys_values(features).view(B, 3, HEADS, C // HEADS, down, WINDOW, across, WINDOW)
        windows = split.permute(1, 0, 4, 6, 2, 5, 7, 3).reshape(3, B * down * across, HEADS, WINDOW**2, -1)
        bias = self.position[self.relative.flatten()].view(WINDOW**2, WINDOW**2, HEADS).permute(2, 0, 1)
        q, k, v = windows.unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(windows.dtype)[None])
        shaped = attended.view(B, down, across, HEADS, WINDOW, WINDOW, C // HEADS)
        return shaped.permute(0, 3, 6, 1, 4, 2, 5).reshape(B, C, down * WINDOW, across * WINDOW)


class WeightedFusion(nn.Module):
    """Doubles the resolution, adds the projected map of the encoder by learned positive weights that sum to one.

    Args:
        channels: channels of the encoder's map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, WIDTH, 1, bias=False)
        self.weights = nn.Parameter(torch.ones(2))
        self.mix = nn.Sequential(conv_norm(WIDTH, WIDTH, 3), nn.ReLU6())

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        """Fuses B 64 h w with B C 2h 2w to B 64 2h 2w."""
        weights = self.weights.relu()
        first, second = (weights / (weights.sum() + EPS)).unbind(0)
        larger = F.interpolate(features, size=skip.shape[-2:], mode="bilinear")
        mixed: Tensor = self.mix(first * self.project(skip) + second * larger)
        return mixed


class FeatureRefinement(nn.Module):
    """The feature refinement head: weighs pixels and channels, adds both results, and a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.channels = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(WIDTH, WIDTH // REDUCTION, 1, bias=False),
            nn.ReLU6(),
            nn.Conv2d(WIDTH // REDUCTION, WIDTH, 1, bias=False),
        )
        self.shortcut = conv_norm(WIDTH, WIDTH, 1)
        self.project = nn.Sequential(
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH, bias=False),
            nn.BatchNorm2d(WIDTH),
            nn.Conv2d(WIDTH, WIDTH, 1, bias=False),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Refines B 64 h w."""
        weighed = features * self.pixels(features).sigmoid() + features * self.channels(features).sigmoid()
        return F.relu6(self.project(weighed) + self.shortcut(features))


def conv_norm(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Returns a convolution of the same size and a batch norm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs)
    )


def _average(features: Tensor, kernel: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Averages over a kernel of even length around each pixel of a map of this size.

    Args:
        features: B C H W, whole windows that hold the map.
        kernel: height and width; one of them is 1.
        size: height and width of the map. Beyond its last window the last row or column is repeated.
    """
    for axis, side, length in zip((-2, -1), kernel, size, strict=True):
        first = -((side - 1) // 2)
        features = _take(features, axis, first, length + side - 1, _windows_of(length) * WINDOW)
    return F.avg_pool2d(features, kernel, stride=1)


def _windows_of(length: int) -> int:
    """Returns the number of windows that cover a length."""
    return (length + WINDOW - 1) // WINDOW  # ONNX rounds the quotient of a negative number towards zero


def _take(features: Tensor, axis: int, first: int, count: int, length: int) -> Tensor:
    """Takes rows or columns from `first` on; indices outside 0 to `length` - 1 are clamped.

    Unlike a slice or `F.pad`, it lets torch.export leave all numbers free.
    """
    places = torch.arange(first, first + count, device=features.device)
    return features.index_select(axis, places.clamp(0, length - 1))

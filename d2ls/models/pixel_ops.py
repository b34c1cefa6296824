"""The operations on pixel features: nearly all of the head's cost, because other tensors are much shorter.

In eager mode each is computed by a hand-written kernel (`pixel_kernels`). Under `torch.compile` and `torch.export` it
is computed by plain operations, which a compiler can fuse and an exporter can express. The results are equal.

Letters: B images, S branches (dynamic, static), T branches of the pixel features (1 while both branches still share
E0, S later), N pixels, C channels, H heads, K classes, R rows (S/T H K of them).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from d2ls.models import pixel_kernels as kernels
from d2ls.models.pixel_kernels import widen


def attend_pixels(features: Tensor, position: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Attends to the pixels: softmax over pixels of rows . (E + P), times E.

    Args:
        features: E, B T N C.
        position: P, N C.
        rows: B T R C, queries already projected to the pixel features' space and scaled.

    Returns:
        The context, B T R C, for each row a weighted mean of E; and E itself, which the next operation must use
        (for the reason see `pixel_kernels.AttendPixels`).
    """
    features, position, rows = _common_dtype(features, position, rows)
    if torch.compiler.is_compiling():
        return plain_attend_pixels(features, position, rows)
    context, passed = kernels.AttendPixels.apply(features.flatten(0, 1), position, rows.flatten(0, 1))
    return context.view(rows.shape), passed.view(features.shape)


def refine_pixels(
    features: Tensor,
    position: Tensor,
    rows: Tensor,
    offsets: Tensor,
    values: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Tensor:
    """Lets pixels attend to the dictionary, adds the result to them, and normalises.

    For each head: softmax over classes of rows . (E + P) + offsets, times values. Summed over heads this is added to E;
    LayerNorm follows.

    Args:
        features: E, B T N C.
        position: P, N C.
        rows: B S H K C, keys projected to the pixel features' space and scaled.
        offsets: B S H K, the part of the scores that comes from the query bias.
        values: B S H K C, values projected to the pixel features' space, including the output bias.
        weight: C, scale of the norm.
        bias: C, shift of the norm.
        eps: of the norm.

    Returns:
        E of the next stage, B S N C.
    """
    features, position, rows, offsets, values = _common_dtype(features, position, rows, offsets, values)
    if torch.compiler.is_compiling():
        return plain_refine_pixels(features, position, rows, offsets, values, weight, bias, eps)
    B, S, H, K, C = rows.shape
    flat = (rows.reshape(B * S, H * K, C), offsets.reshape(B * S, H * K), values.reshape(B * S, H * K, C))
    refined: Tensor = kernels.RefinePixels.apply(
        features.flatten(0, 1), position, *flat, weight, bias, eps, H
    )
    return refined.view(B, S, -1, C)


def upsample(
    features: Tensor, vectors: Tensor, weight: Tensor, bias: Tensor, eps: float, size: tuple[int, int]
) -> Tensor:
    """Computes logits at four times the resolution; see `decoder.Upsampler`.

    A pixel shuffle only renames elements. So nothing is moved before the last step: the 16 sub-pixels of a pixel stay
    beside each other, and only the K logits are laid out at input resolution.

    Args:
        features: E, G N C; channels in the order that PixelShuffle reads them: C/16, then row and column of the
            second shuffle, then row and column of the first.
        vectors: G K C/16.
        weight: C/4, scale of the norm between the shuffles; order: row and column of the second shuffle, C/16.
        bias: C/4, its shift.
        eps: of the norm.
        size: height and width of the map, N is their product.

    Returns:
        G K 4*height 4*width.
    """
    features, vectors = _common_dtype(features, vectors)
    run = plain_upsample if torch.compiler.is_compiling() else kernels.Upsample.apply
    logits: Tensor = run(features, vectors, weight, bias, eps, size)
    return logits


def plain_attend_pixels(features: Tensor, position: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Computes `attend_pixels` with plain operations."""
    flat, moved = features.flatten(0, 1), (features + position).flatten(0, 1)
    scores = torch.bmm(rows.flatten(0, 1), moved.mT)
    attention = widen(scores).softmax(dim=-1).to(scores.dtype)
    return torch.bmm(attention, flat).view(rows.shape), features


def plain_refine_pixels(
    features: Tensor,
    position: Tensor,
    rows: Tensor,
    offsets: Tensor,
    values: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Tensor:
    """Computes `refine_pixels` with plain operations."""
    B, S, H, K, C = rows.shape
    T, N = features.shape[1:3]
    moved = (features + position).flatten(0, 1)
    scores = torch.bmm(rows.reshape(B * T, -1, C), moved.mT).view(B * S, H, K, N) + offsets.view(
        B * S, H, K, 1
    )
    attention = widen(scores).softmax(dim=2).to(scores.dtype).flatten(1, 2)
    read = torch.bmm(attention.mT, values.view(B * S, H * K, C)).view(B, S, N, C)
    return F.layer_norm(widen(features + read), (C,), weight, bias, eps).to(features.dtype)


def plain_upsample(
    features: Tensor, vectors: Tensor, weight: Tensor, bias: Tensor, eps: float, size: tuple[int, int]
) -> Tensor:
    """Computes `upsample` with plain operations."""
    G, N, C = features.shape
    height, width = size
    sub_pixels = features.view(G, N, C // 16, 4, 4).transpose(2, 4).reshape(G, N * 4, C // 4)
    normed = F.layer_norm(widen(sub_pixels), (C // 4,), weight, bias, eps).to(features.dtype)
    logits = torch.bmm(F.gelu(F.gelu(normed)).view(G, N * 16, C // 16), vectors.mT)
    shaped = logits.view(G, height, width, 2, 2, 2, 2, -1)
    return shaped.permute(0, 7, 1, 3, 5, 2, 4, 6).reshape(G, -1, 4 * height, 4 * width)


def _common_dtype(*tensors: Tensor) -> list[Tensor]:
    """Casts to the dtype of autocast where it is on, else to that of the first tensor."""
    device = tensors[0].device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensors[0].dtype
    return [tensor.to(dtype) for tensor in tensors]

"""Chooses how the pixel side is computed: blocked in eager mode, plain for compilers and exporters."""

import torch
from torch import Tensor

from d2ls.model import blocked, plain


def gather(features: Tensor, position: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """See `plain.gather`."""
    features, position, rows = _common_dtype(features, position, rows)
    if torch.compiler.is_compiling():
        return plain.gather(features, position, rows)
    context, passed = blocked.Gather.apply(features.flatten(0, 1), position, rows.flatten(0, 1))
    return context.view(rows.shape), passed.view(features.shape)


def refine(
    features: Tensor,
    position: Tensor,
    rows: Tensor,
    offsets: Tensor,
    values: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Tensor:
    """See `plain.refine`."""
    features, position, rows, offsets, values = _common_dtype(features, position, rows, offsets, values)
    if torch.compiler.is_compiling():
        return plain.refine(features, position, rows, offsets, values, weight, bias, eps)
    B, S, H, K, C = rows.shape
    flat = (rows.reshape(B * S, H * K, C), offsets.reshape(B * S, H * K), values.reshape(B * S, H * K, C))
    refined: Tensor = blocked.Refine.apply(features.flatten(0, 1), position, *flat, weight, bias, eps, H)
    return refined.view(B, S, -1, C)


def upsample(
    features: Tensor, vectors: Tensor, weight: Tensor, bias: Tensor, eps: float, size: tuple[int, int]
) -> Tensor:
    """See `plain.upsample`."""
    features, vectors = _common_dtype(features, vectors)
    run = plain.upsample if torch.compiler.is_compiling() else blocked.Upsample.apply
    logits: Tensor = run(features, vectors, weight, bias, eps, size)
    return logits


def _common_dtype(*tensors: Tensor) -> list[Tensor]:
    """Casts to the dtype of autocast where that is on, else to that of the first."""
    device = tensors[0].device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensors[0].dtype
    return [tensor.to(dtype) for tensor in tensors]

"""Hand-written forward and backward of the operations of `pixel_ops`, for eager execution.

Two things are won. Kept for backward are only the pixel features themselves and the small attention weights; all else
is computed again. And on a CPU the pixels are taken in blocks that stay in cache, so that no temporary of full size
is ever written. Other devices take all pixels as one block. Letters as in `pixel_ops`; G stands for B and T or S
together.

Kept because it is ahead of `torch.utils.checkpoint` over the plain operations (benchmarks/pixel_kernels.py). In the
derivations, dX is the gradient of the loss with respect to X; a product of matrices is written side by side, `'`
transposes.
"""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

aten = torch.ops.aten
BLOCK = 1024
"""Pixels a block on a CPU; a block of 256 float channels then is 1 MiB."""


def without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Runs a forward or backward in the dtypes that it is given."""

    @wraps(function)
    def run(ctx: Any, first: Tensor, *others: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return function(ctx, first, *others)

    return run


def backward_by_hand(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `without_autocast`, and refuses to be differentiated a second time."""
    once: Callable[..., Any] = once_differentiable(without_autocast(function))
    return once


def blocks(
    groups: int, share: int, length: int, step: int, device: str
) -> Iterator[tuple[slice, slice, slice]]:
    """Cuts the work.

    Yields:
        The groups of a block, the groups of the pixel features they read (`share` groups read the same), and the
        part of the pixels (or rows of the map).
    """
    if device != "cpu":
        for first in range(share):
            yield slice(first, None, share), slice(None), slice(None)
        return
    for group in range(groups):
        for start in range(0, length, step):
            read = group // share
            yield slice(group, group + 1), slice(read, read + 1), slice(start, start + step)


class AttendPixels(torch.autograd.Function):
    """`attend_pixels` on G N C, N C and G R C."""

    @staticmethod
    @without_autocast
    def forward(ctx: Any, features: Tensor, position: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Computes context and passes the features on.

        For each group: scores S = Q (E + P)', attention A = softmax of S over the N pixels, context X = A E, with Q the
        rows (R C), E the features (N C), P the position (N C). Only S is made block by block, as it alone needs the sum
        E + P; the softmax needs all pixels. A (R N) is kept, E + P is not.
        """
        (G, N, _), R = features.shape, rows.shape[1]
        scores = rows.new_empty(G, R, N)
        for own, _, part in blocks(G, 1, N, BLOCK, rows.device.type):
            moved = features[own, part] + position[part]
            scores[own, :, part] = torch.bmm(rows[own], moved.mT)
        attention = widen(scores).softmax(dim=-1).to(rows.dtype)
        ctx.save_for_backward(features, position, rows, attention)
        return torch.bmm(attention, features), features

    @staticmethod
    @backward_by_hand
    def backward(ctx: Any, d_context: Tensor, d_passed: Tensor) -> tuple[Tensor | None, ...]:
        """Adds the gradient through the context to that of the later readers of the features.

        X = A E gives dA = dX E', and a first part of dE: A' dX. The softmax gives, for each row over the pixels,
        dS = A (dA - sum(A dA)), entry by entry (`_softmax_backward`). S = Q (E + P)' gives dQ = dS (E + P), which is a
        sum over pixels and so over blocks, and a second part of dE: dS' Q. The features were passed on, so what their
        later readers ask for (`d_passed`) is a third part:

            dE = d_passed + A' dX + dS' Q

        The position has no gradient: its frequencies are a buffer.
        """
        features, position, rows, attention = ctx.saved_tensors
        d_attention = torch.bmm(d_context, features.mT)
        d_scores = _softmax_backward(d_attention, attention, -1)
        d_rows, d_features = torch.zeros_like(widen(rows)), torch.empty_like(features)
        for own, _, part in blocks(len(features), 1, features.shape[1], BLOCK, rows.device.type):
            weights, slopes = attention[own, :, part], d_scores[own, :, part]
            d_rows[own] += torch.bmm(slopes, features[own, part] + position[part])
            through = torch.baddbmm(d_passed[own, part], weights.mT, d_context[own])
            d_features[own, part] = through.baddbmm_(slopes.mT, rows[own])
        return d_features, None, d_rows.to(rows.dtype)


class RefinePixels(torch.autograd.Function):
    """`refine_pixels`; features G' N C with G' = B T, rows and values G (H K) C, offsets G (H K), G = B S."""

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any,
        features: Tensor,
        position: Tensor,
        rows: Tensor,
        offsets: Tensor,
        values: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        heads: int,
    ) -> Tensor:
        """Computes the refined features.

        For each group and block of pixels: scores S = Q (E + P)' + o, one row for each head and class; attention A =
        softmax of S over the classes of a head; read Y = E + A' V, the sum over heads being part of the product, as A
        has H K rows; result Z = LayerNorm(Y). Pixels do not meet each other, so a block is done in one go. A and the
        two numbers of the norm for each pixel (mean, 1 / deviation) are kept; Y, as large as E, is not.
        """
        (G, R, C), N = rows.shape, features.shape[1]
        keep = any(ctx.needs_input_grad)
        refined = features.new_empty(G, N, C)
        attention = rows.new_empty(G, R, N) if keep else None
        statistics = weight.new_empty(2, G, N, 1) if keep else None
        for own, read, part in blocks(G, G // len(features), N, BLOCK, rows.device.type):
            block = features[read, part]
            scores = torch.baddbmm(offsets[own, :, None], rows[own], (block + position[part]).mT)
            weights = widen(_by_class(scores, heads)).softmax(dim=2).to(rows.dtype).view(scores.shape)
            summed = widen(torch.baddbmm(block, weights.mT, values[own]))
            normed, mean, spread = aten.native_layer_norm(summed, (C,), weight, bias, eps)
            refined[own, part] = normed
            if attention is not None and statistics is not None:
                attention[own, :, part] = weights
                statistics[0, own, part], statistics[1, own, part] = mean, spread
        ctx.save_for_backward(features, position, rows, values, weight, bias, attention, statistics)
        ctx.heads = heads
        return refined

    @staticmethod
    @backward_by_hand
    def backward(ctx: Any, d_refined: Tensor) -> tuple[Tensor | None, ...]:
        """Computes the sums before the norm again.

        For each block, with Y = E + A' V made once more: the norm's own backward gives dY from dZ, Y and the kept
        statistics, and sums d_weight and d_bias over blocks. Y = E + A' V gives dV = A dY and dA = V dY', and dY is a
        first part of dE. The softmax over the classes of a head gives dS = A (dA - sum over those classes of A dA).
        S = Q (E + P)' + o gives do = sum of dS over pixels, dQ = dS (E + P), and the second part of dE:

            dE = dY + dS' Q

        dQ, dV and do are sums over pixels: they gather over blocks in float32. Where S branches read the same features
        (`share` of them), the first to come writes dE and the others add to it.
        """
        features, position, rows, values, weight, bias, attention, statistics = ctx.saved_tensors
        G, share, C = len(rows), len(rows) // len(features), rows.shape[2]
        d_features = torch.empty_like(features)
        d_rows, d_values, d_weight, d_bias = (
            torch.zeros_like(widen(each)) for each in (rows, values, weight, bias)
        )
        d_offsets = d_rows.new_zeros(rows.shape[:2])
        for own, read, part in blocks(G, share, features.shape[1], BLOCK, rows.device.type):
            block, weights = features[read, part], attention[own, :, part]
            summed = widen(torch.baddbmm(block, weights.mT, values[own]))
            slope, d_w, d_b = aten.native_layer_norm_backward(
                widen(d_refined[own, part]),
                summed,
                (C,),
                statistics[0, own, part].contiguous(),
                statistics[1, own, part].contiguous(),
                weight,
                bias,
                (True, True, True),
            )
            d_weight, d_bias, slope = d_weight.add_(d_w), d_bias.add_(d_b), slope.to(rows.dtype)
            d_values[own] += torch.bmm(weights, slope)
            d_weights = torch.bmm(values[own], slope.mT)
            d_scores = _softmax_backward(
                _by_class(d_weights, ctx.heads), _by_class(weights, ctx.heads), 2
            ).view(weights.shape)
            d_offsets[own] += widen(d_scores).sum(-1)
            d_rows[own] += torch.bmm(d_scores, block + position[part])
            slope = slope.baddbmm_(d_scores.mT, rows[own])
            if (own.start or 0) % share == 0:
                d_features[read, part] = slope
            else:
                d_features[read, part] += slope
        d_rows, d_values, d_offsets = (each.to(rows.dtype) for each in (d_rows, d_values, d_offsets))
        return d_features, None, d_rows, d_offsets, d_values, d_weight, d_bias, None, None


class Upsample(torch.autograd.Function):
    """`upsample`."""

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any,
        features: Tensor,
        vectors: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        size: tuple[int, int],
    ) -> Tensor:
        """Computes logits.

        For each block of map rows: the features, renamed to 4 sub-pixels of C/4 channels (the first pixel shuffle), are
        normalised, Z = LayerNorm(U); F = gelu(gelu(Z)), the second shuffle between them being a mere renaming, holds 16
        sub-pixels of c = C/16 channels; logits L = F W', with W the class vectors (K c). Nothing but the inputs is
        kept: F is as large as E, and cheap to make again.
        """
        (G, K, _), (height, width) = vectors.shape, size
        rows = features.view(G, height, width, -1)
        logits = features.new_empty(G, K, height, 2, 2, width, 2, 2)
        for own, _, part in blocks(G, 1, height, max(1, BLOCK // width), features.device.type):
            normed = _sub_pixels_normed(rows[own, part], weight, bias, eps)[1]
            fine = _gelu(_gelu(normed)).view(normed.shape[0], -1, vectors.shape[2])
            block = torch.bmm(fine, vectors[own].mT).view(len(fine), -1, width, 2, 2, 2, 2, K)
            logits[own, :, part] = block.permute(0, 7, 1, 3, 5, 2, 4, 6)
        ctx.save_for_backward(features, vectors, weight, bias)
        ctx.eps, ctx.size = eps, size
        return logits.view(G, K, 4 * height, 4 * width)

    @staticmethod
    @backward_by_hand
    def backward(ctx: Any, d_logits: Tensor) -> tuple[Tensor | None, ...]:
        """Computes all between features and logits again.

        With U, Z, gelu(Z) and F made once more for the block: L = F W' gives dW = dL' F, a sum over blocks, and
        dF = dL W. Each gelu multiplies by its derivative at its own input: first at gelu(Z), then at Z. The norm's own
        backward gives dU and sums d_weight and d_bias. U is E with its channels renamed, so dE is dU with the names
        turned back (`_swap`).
        """
        features, vectors, weight, bias = ctx.saved_tensors
        (G, K, c), (height, width) = vectors.shape, ctx.size
        rows = features.view(G, height, width, -1)
        d_logits = d_logits.reshape(G, K, height, 2, 2, width, 2, 2)
        d_features = torch.empty_like(rows, memory_format=torch.contiguous_format)
        d_vectors, d_weight, d_bias = (torch.zeros_like(widen(each)) for each in (vectors, weight, bias))
        for own, _, part in blocks(G, 1, height, max(1, BLOCK // width), features.device.type):
            sub_pixels, normed, mean, spread = _sub_pixels_normed(rows[own, part], weight, bias, ctx.eps)
            once = _gelu(normed)
            twice = _gelu(once)
            slope = d_logits[own, :, part].permute(0, 2, 5, 3, 6, 4, 7, 1).reshape(len(twice), -1, K)
            d_vectors[own] += torch.bmm(slope.mT, twice.view(len(twice), -1, c))
            slope = torch.bmm(slope, vectors[own]).view(twice.shape)
            slope = widen(aten.gelu_backward(aten.gelu_backward(slope, once), normed))
            slope, d_w, d_b = aten.native_layer_norm_backward(
                slope, sub_pixels, (4 * c,), mean, spread, weight, bias, (True, True, True)
            )
            d_weight, d_bias = d_weight.add_(d_w), d_bias.add_(d_b)
            d_features[own, part] = _swap(slope.view(*rows[own, part].shape[:3], 4, 4, c))
        d_features = d_features.view(features.shape)
        return d_features, d_vectors.to(vectors.dtype), d_weight, d_bias, None, None


def _gelu(values: Tensor) -> Tensor:
    return torch.nn.functional.gelu(values)


def _sub_pixels_normed(
    rows: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Turns map rows (g h w C) into sub-pixels (g 4hw C/4) and normalises them.

    Returns:
        Sub-pixels (float32), normed (in the dtype of the rows), means, reciprocal deviations.
    """
    C = rows.shape[-1]
    shuffled = rows.reshape(len(rows), -1, C // 16, 4, 4).transpose(2, 4)
    sub_pixels = widen(shuffled.reshape(len(rows), -1, C // 4))
    normed, mean, spread = aten.native_layer_norm(sub_pixels, (C // 4,), weight, bias, eps)
    return sub_pixels, normed.to(rows.dtype), mean, spread


def _swap(sub_pixels: Tensor) -> Tensor:
    """Inverse of the channel order of `_sub_pixels_normed`: ... 4 4 c to ... C."""
    return sub_pixels.transpose(-3, -1).flatten(-3)


def _by_class(values: Tensor, heads: int) -> Tensor:
    """Splits g (H K) n into g H K n, without a copy."""
    g, rows, n = values.shape
    return values.view(g, heads, rows // heads, n)


def _softmax_backward(slope: Tensor, weights: Tensor, dim: int) -> Tensor:
    result: Tensor = aten._softmax_backward_data(widen(slope), widen(weights), dim, widen(slope).dtype)
    return result.to(slope.dtype)


def widen(values: Tensor) -> Tensor:
    """Gives softmax, norms and sums float32 at least."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values

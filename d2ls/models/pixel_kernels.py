"""Hand-written forward and backward passes of the operations in `pixel_ops`, for eager execution.

They have two advantages over autograd. Memory: only the pixel features and the small attention weights are kept for
the backward pass. Everything else that is as long as the image is computed again there. Cache: on a CPU, pixels are
processed in blocks of `BLOCK`. A block's temporaries stay in the cache, and none of full size is written. Other
devices process all pixels as one block. The kernels are kept because they need less time and memory than
`torch.utils.checkpoint` over the plain operations (benchmarks/pixel_kernels.py).

How to read the derivations. Capitals are matrices as in the formulas of `pixel_ops`, written for one image: E pixel
features (N C), P their positions (N C), a product is written side by side, ' transposes. dX is the gradient of the loss
with respect to X and has X's shape. Three rules are all that is needed:

    product      Z = X Y'           =>  dX = dZ Y        dY = dZ' X
    softmax      a = softmax(s)     =>  ds = a * (da - sum(a * da))            entry by entry along the softmax axis
    sum          Z = X + Y          =>  dX = dZ          dY = dZ

The softmax rule follows from its derivative, da_i/ds_j = a_i (1[i = j] - a_j):

    ds_j = sum_i da_i a_i (1[i = j] - a_j) = a_j da_j - a_j sum_i a_i da_i

Where a matrix has no pixel axis (rows, values, norm weights), its gradient is a sum over pixels, hence over blocks, and
is accumulated in float32. A test compares every kernel with autograd through the plain operations, in float64, with
blocks that do not divide the image. It is also the test that fails if a release of PyTorch changes an `aten`
operation used here. Letters as in `pixel_ops`; G stands for the product of images and branches.
"""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

aten = torch.ops.aten
BLOCK = 1024
"""Pixels of a block on a CPU; a block of 256 float32 channels is 1 MiB."""


def without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a forward or backward pass compute in the dtypes of its arguments."""

    @wraps(function)
    def run(ctx: Any, first: Tensor, *others: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return function(ctx, first, *others)

    return run


def backward_by_hand(function: Callable[..., Any]) -> Callable[..., Any]:
    """Does the same for a backward pass, and refuses to differentiate it a second time."""
    once: Callable[..., Any] = once_differentiable(without_autocast(function))
    return once


def blocks(
    groups: int, share: int, length: int, step: int, device: str
) -> Iterator[tuple[slice, slice, slice]]:
    """Cuts the work into blocks.

    Args:
        groups: G, of the dictionary side.
        share: how many consecutive groups read the same pixel features.
        length: pixels (or rows of the map).
        step: most of them in a block, on a CPU.
        device: type of the device.

    Yields:
        Slices of the groups, of the pixel features that they read, and of the pixels.
    """
    if device != "cpu":
        for first in range(share):
            yield slice(first, None, share), slice(None), slice(None)
        return
    for group in range(groups):
        for start in range(0, length, step):
            source = group // share
            yield slice(group, group + 1), slice(source, source + 1), slice(start, start + step)


class AttendPixels(torch.autograd.Function):
    """`attend_pixels` on features G N C, position N C and rows G R C.

    With Q the rows (R C):

        S = Q (E + P)'                R N    scores
        A = softmax of S over N       R N    attention
        X = A E                       R C    context

    Returns X, and E itself as a second output. The next operation that reads E takes this second output instead of E.
    Autograd then calls this backward with the gradients of all later readers already summed, and they are added to in
    each block. If every reader took E, autograd would add up one whole map (N C) for each.
    """

    @staticmethod
    @without_autocast
    def forward(ctx: Any, features: Tensor, position: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Computes S block by block, since E + P is needed for nothing else; the softmax needs all pixels.

        Keeps the inputs and A (R N), but not E + P.
        """
        (G, N, _), R = features.shape, rows.shape[1]
        scores = rows.new_empty(G, R, N)
        for group, _, part in blocks(G, 1, N, BLOCK, rows.device.type):
            keys = features[group, part] + position[part]
            scores[group, :, part] = torch.bmm(rows[group], keys.mT)
        attention = widen(scores).softmax(dim=-1).to(rows.dtype)
        ctx.save_for_backward(features, position, rows, attention)
        return torch.bmm(attention, features), features

    @staticmethod
    @backward_by_hand
    def backward(ctx: Any, d_context: Tensor, d_passed: Tensor) -> tuple[Tensor | None, ...]:
        """Turns dX and the gradient of the passed-on E into dE and dQ.

        Backwards through the three formulas:

            X = A E           =>  dA = dX E'                      and E receives  A' dX     (1)
            A = softmax(S)    =>  dS = A * (dA - sum_N(A * dA))
            S = Q (E + P)'    =>  dQ = dS (E + P)                 and E receives  dS' Q     (2)

        E receives a third part from its later readers, `d_passed`, so in the end

            dE = d_passed + A' dX + dS' Q

        dA and dS have R rows, few beside C, and are computed for all pixels at once. dQ is a sum over pixels; it and dE
        are computed block by block, with E + P made again. P has no gradient: it comes from a buffer.
        """
        features, position, rows, attention = ctx.saved_tensors
        d_attention = torch.bmm(d_context, features.mT)
        d_scores = _softmax_backward(d_attention, attention, -1)
        d_rows, d_features = torch.zeros_like(widen(rows)), torch.empty_like(features)
        for group, _, part in blocks(len(features), 1, features.shape[1], BLOCK, rows.device.type):
            weights, d_block_scores = attention[group, :, part], d_scores[group, :, part]
            d_rows[group] += torch.bmm(d_block_scores, features[group, part] + position[part])
            d_block = torch.baddbmm(d_passed[group, part], weights.mT, d_context[group])  # d_passed + (1)
            d_features[group, part] = d_block.baddbmm_(d_block_scores.mT, rows[group])  # + (2)
        return d_features, None, d_rows.to(rows.dtype)


class RefinePixels(torch.autograd.Function):
    """`refine_pixels` on features G' N C with G' = B T, rows and values G (H K) C and offsets G (H K), with G = B S.

    With Q the rows and V the values (H K C, heads and classes in one axis), o the offsets:

        S = Q (E + P)' + o            HK N   scores
        A = softmax of S over K       HK N   attention; each head of each pixel has its own softmax over the classes
        Y = E + A' V                  N C    sums; the product with HK rows also sums over heads
        Z = LayerNorm(Y) w + b        N C    refined features

    No pixel needs another one, so a block goes through all four formulas while it is in the cache.
    """

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
        """Computes Z.

        Keeps the inputs, A, and the mean and 1 / deviation of each pixel from the norm. S and Y are not kept: Y is as
        large as E and would double what a stage keeps.
        """
        (G, R, C), N = rows.shape, features.shape[1]
        keep = any(ctx.needs_input_grad)
        refined = features.new_empty(G, N, C)
        attention = rows.new_empty(G, R, N) if keep else None
        statistics = weight.new_empty(2, G, N, 1) if keep else None
        for group, source, part in blocks(G, G // len(features), N, BLOCK, rows.device.type):
            block = features[source, part]
            scores = torch.baddbmm(offsets[group, :, None], rows[group], (block + position[part]).mT)
            weights = widen(_by_class(scores, heads)).softmax(dim=2).to(rows.dtype).view(scores.shape)
            sums = widen(torch.baddbmm(block, weights.mT, values[group]))
            normed, mean, inverse_deviation = aten.native_layer_norm(sums, (C,), weight, bias, eps)
            refined[group, part] = normed
            if attention is not None and statistics is not None:
                attention[group, :, part] = weights
                statistics[0, group, part], statistics[1, group, part] = mean, inverse_deviation
        ctx.save_for_backward(features, position, rows, values, weight, bias, attention, statistics)
        ctx.heads = heads
        return refined

    @staticmethod
    @backward_by_hand
    def backward(ctx: Any, d_refined: Tensor) -> tuple[Tensor | None, ...]:
        """Turns dZ into the gradients of E, Q, o, V, w and b; a block of Y is made again from A, V and E.

        Backwards through the four formulas:

            Z = LayerNorm(Y) w + b  =>  dY, and sums over pixels for dw and db: PyTorch's own backward of the norm,
                                        given Y, the kept mean and the kept deviation
            Y = E + A' V            =>  dV = A dY      dA = V dY'                        and E receives  dY        (1)
            A = softmax over K      =>  dS = A * (dA - sum_K(A * dA)), for each head by itself
            S = Q (E + P)' + o      =>  dQ = dS (E + P)      do = sum of dS over pixels  and E receives  dS' Q     (2)

        So dE = dY + dS' Q. All but dE are sums over pixels and add up over blocks.

        Where S branches read the same E (T = 1, `share` = S groups read one map), dE is also a sum over these. The
        first group of a map writes its part, the others add theirs.
        """
        features, position, rows, values, weight, bias, attention, statistics = ctx.saved_tensors
        G, share, C = len(rows), len(rows) // len(features), rows.shape[2]
        d_features = torch.empty_like(features)
        d_rows, d_values, d_weight, d_bias = (
            torch.zeros_like(widen(tensor)) for tensor in (rows, values, weight, bias)
        )
        d_offsets = d_rows.new_zeros(rows.shape[:2])
        for group, source, part in blocks(G, share, features.shape[1], BLOCK, rows.device.type):
            block, weights = features[source, part], attention[group, :, part]
            sums = widen(torch.baddbmm(block, weights.mT, values[group]))
            d_sums, d_block_weight, d_block_bias = aten.native_layer_norm_backward(
                widen(d_refined[group, part]),
                sums,
                (C,),
                statistics[0, group, part].contiguous(),
                statistics[1, group, part].contiguous(),
                weight,
                bias,
                (True, True, True),
            )
            d_weight, d_bias = d_weight.add_(d_block_weight), d_bias.add_(d_block_bias)
            d_sums = d_sums.to(rows.dtype)
            d_values[group] += torch.bmm(weights, d_sums)
            d_weights = torch.bmm(values[group], d_sums.mT)
            d_scores = _softmax_backward(
                _by_class(d_weights, ctx.heads), _by_class(weights, ctx.heads), 2
            ).view(weights.shape)
            d_offsets[group] += widen(d_scores).sum(-1)
            d_rows[group] += torch.bmm(d_scores, block + position[part])
            d_block = d_sums.baddbmm_(d_scores.mT, rows[group])  # (1) + (2)
            if (group.start or 0) % share == 0:
                d_features[source, part] = d_block
            else:
                d_features[source, part] += d_block
        d_rows, d_values, d_offsets = (tensor.to(rows.dtype) for tensor in (d_rows, d_values, d_offsets))
        return d_features, None, d_rows, d_offsets, d_values, d_weight, d_bias, None, None


class Upsample(torch.autograd.Function):
    """`upsample` on features G N C and vectors G K C/16.

    A pixel shuffle only renames elements: the C channels of a pixel become C/4 channels of 4 sub-pixels. So both
    shuffles are views of one row of C numbers, which has three axes: (c, s2, s1), with c = C/16 channels and s2, s1 the
    4 sub-pixels of the second and of the first shuffle. With W the class vectors (K c):

        U = E, as rows of 4 sub-pixels     4N 4c     axes (s1; s2 c), made from (c s2 s1) by exchanging c and s1
        Z = LayerNorm(U)                   4N 4c
        F = gelu(gelu(Z))                  16N c     the second shuffle, between the two, is a mere change of view
        L = F W'                           16N K     logits of all sub-pixels

    Only L, which has K channels instead of c, is laid out at input resolution: sub-pixel (i1, j1) of s1 and (i2, j2) of
    s2 of the pixel (y, x) is at row 4 y + 2 i1 + i2 and column 4 x + 2 j1 + j2.
    """

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
        """Computes L, in blocks of whole map rows.

        Keeps nothing but the inputs: F is as large as E and cheap to make again.
        """
        (G, K, _), (height, width) = vectors.shape, size
        rows = features.view(G, height, width, -1)
        logits = features.new_empty(G, K, height, 2, 2, width, 2, 2)
        for group, _, part in blocks(G, 1, height, max(1, BLOCK // width), features.device.type):
            normed = _sub_pixels_normed(rows[group, part], weight, bias, eps)[1]
            fine = _gelu(_gelu(normed)).view(normed.shape[0], -1, vectors.shape[2])
            block = torch.bmm(fine, vectors[group].mT).view(len(fine), -1, width, 2, 2, 2, 2, K)
            logits[group, :, part] = block.permute(0, 7, 1, 3, 5, 2, 4, 6)
        ctx.save_for_backward(features, vectors, weight, bias)
        ctx.eps, ctx.size = eps, size
        return logits.view(G, K, 4 * height, 4 * width)

    @staticmethod
    @backward_by_hand
    def backward(ctx: Any, d_logits: Tensor) -> tuple[Tensor | None, ...]:
        """Turns dL into the gradients of E, W and the norm's scale and shift; U, Z, gelu(Z) and F are made again.

        Backwards through the four formulas, with gelu' the derivative of gelu:

            L = F W'            =>  dW = dL' F      dF = dL W
            F = gelu(gelu(Z))   =>  dZ = dF * gelu'(gelu(Z)) * gelu'(Z): the outer one at its own input first
            Z = LayerNorm(U)    =>  dU, and sums over pixels for scale and shift: PyTorch's own backward of the norm
            U = E renamed       =>  dE = dU with c and s1 exchanged once more (`_exchange`)
        """
        features, vectors, weight, bias = ctx.saved_tensors
        (G, K, c), (height, width) = vectors.shape, ctx.size
        rows = features.view(G, height, width, -1)
        d_logits = d_logits.reshape(G, K, height, 2, 2, width, 2, 2)
        d_features = torch.empty_like(rows, memory_format=torch.contiguous_format)
        d_vectors, d_weight, d_bias = (torch.zeros_like(widen(tensor)) for tensor in (vectors, weight, bias))
        for group, _, part in blocks(G, 1, height, max(1, BLOCK // width), features.device.type):
            sub_pixels, normed, mean, inverse_deviation = _sub_pixels_normed(
                rows[group, part], weight, bias, ctx.eps
            )
            once = _gelu(normed)
            fine = _gelu(once)
            d_block = d_logits[group, :, part].permute(0, 2, 5, 3, 6, 4, 7, 1).reshape(len(fine), -1, K)
            d_vectors[group] += torch.bmm(d_block.mT, fine.view(len(fine), -1, c))
            d_fine = torch.bmm(d_block, vectors[group]).view(fine.shape)
            d_normed = widen(aten.gelu_backward(aten.gelu_backward(d_fine, once), normed))
            d_sub_pixels, d_block_weight, d_block_bias = aten.native_layer_norm_backward(
                d_normed, sub_pixels, (4 * c,), mean, inverse_deviation, weight, bias, (True, True, True)
            )
            d_weight, d_bias = d_weight.add_(d_block_weight), d_bias.add_(d_block_bias)
            d_features[group, part] = _exchange(d_sub_pixels.view(*rows[group, part].shape[:3], 4, 4, c))
        d_features = d_features.view(features.shape)
        return d_features, d_vectors.to(vectors.dtype), d_weight, d_bias, None, None


def widen(values: Tensor) -> Tensor:
    """Converts half precision to float32, in which softmax, norms and sums are computed."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


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
    normed, mean, inverse_deviation = aten.native_layer_norm(sub_pixels, (C // 4,), weight, bias, eps)
    return sub_pixels, normed.to(rows.dtype), mean, inverse_deviation


def _exchange(sub_pixels: Tensor) -> Tensor:
    """Restores the channel order of the map: ... s1 s2 c to ... C in the order c s2 s1."""
    return sub_pixels.transpose(-3, -1).flatten(-3)


def _by_class(values: Tensor, heads: int) -> Tensor:
    """Splits g (H K) n into g H K n, without a copy."""
    g, rows, n = values.shape
    return values.view(g, heads, rows // heads, n)


def _softmax_backward(d_weights: Tensor, weights: Tensor, dim: int) -> Tensor:
    """Applies the softmax rule: weights * (d_weights - sum of weights * d_weights along `dim`)."""
    result: Tensor = aten._softmax_backward_data(
        widen(d_weights), widen(weights), dim, widen(d_weights).dtype
    )
    return result.to(d_weights.dtype)

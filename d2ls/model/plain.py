"""The pixel side of the network, written plainly: what compilers and exporters see, and what `blocked` must equal.

Letters: B images, S branches (dynamic, static), T branches of the pixel features (1 while both branches still share
E0, S later), N pixels, C channels, H heads, K classes, R rows (S/T H K of them). Everything here that is as long as N
is the cost of the network; the dictionary side is small.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def gather(features: Tensor, position: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Lets dictionary rows read the pixels: softmax over pixels of rows . (E + P), times E.

    Args:
        features: E, B T N C.
        position: P, N C.
        rows: B T R C, queries already carried to pixel space and scaled.

    Returns:
        B T R C, for each row a mean of E; and E itself, for the next reader.
    """
    flat, moved = features.flatten(0, 1), (features + position).flatten(0, 1)
    scores = torch.bmm(rows.flatten(0, 1), moved.mT)
    attention = widen(scores).softmax(dim=-1).to(scores.dtype)
    return torch.bmm(attention, flat).view(rows.shape), features


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
    """Lets pixels read the dictionary, adds what they read, and normalises.

    For each head softmax over classes of rows . (E + P) + offsets, times values, summed over heads; then
    LayerNorm(E + that).

    Args:
        features: E, B T N C.
        position: P, N C.
        rows: B S H K C, keys carried to pixel space and scaled.
        offsets: B S H K, what the query bias adds to the scores.
        values: B S H K C, values carried to pixel space, the output bias in them.
        weight: C, scale of the norm.
        bias: C, shift of the norm.
        eps: of the norm.

    Returns:
        E of the next stage, B S N C.
    """
    B, S, H, K, C = rows.shape
    T, N = features.shape[1:3]
    moved = (features + position).flatten(0, 1)
    scores = torch.bmm(rows.reshape(B * T, -1, C), moved.mT).view(B * S, H, K, N) + offsets.view(
        B * S, H, K, 1
    )
    attention = widen(scores).softmax(dim=2).to(scores.dtype).flatten(1, 2)
    read = torch.bmm(attention.mT, values.view(B * S, H * K, C)).view(B, S, N, C)
    return F.layer_norm(widen(features + read), (C,), weight, bias, eps).to(features.dtype)


def upsample(
    features: Tensor, vectors: Tensor, weight: Tensor, bias: Tensor, eps: float, size: tuple[int, int]
) -> Tensor:
    """Computes logits at four times the resolution; see `decoder.Upsampler`.

    A pixel shuffle only renames elements, so nothing is moved before the last step: the 16 sub-pixels of a pixel stay
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
    G, N, C = features.shape
    height, width = size
    sub_pixels = features.view(G, N, C // 16, 4, 4).transpose(2, 4).reshape(G, N * 4, C // 4)
    normed = F.layer_norm(widen(sub_pixels), (C // 4,), weight, bias, eps).to(features.dtype)
    logits = torch.bmm(F.gelu(F.gelu(normed)).view(G, N * 16, C // 16), vectors.mT)
    shaped = logits.view(G, height, width, 2, 2, 2, 2, -1)
    return shaped.permute(0, 7, 1, 3, 5, 2, 4, 6).reshape(G, -1, 4 * height, 4 * width)


def widen(values: Tensor) -> Tensor:
    """Gives softmax, norms and sums float32 at least."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values

"""The pixel side of both attentions: the only code of the interactor that touches every pixel.

Letters: B images, S branches (dynamic, static), T branches of the pixel features (1 while both branches still share
E0, later S), N pixels, C channels, H heads, K classes.
"""

import torch
from torch import Tensor


def gather(features: Tensor, position: Tensor, rows: Tensor) -> Tensor:
    """Lets dictionary rows read the pixels: softmax over pixels of rows . (E + P), times E.

    Args:
        features: E, B T N C.
        position: P, N C.
        rows: B S R C, queries already carried to pixel space and scaled.

    Returns:
        B S R C, for each row a mean of E.
    """
    B, T, N, C = features.shape
    flat = features.reshape(B * T, N, C)
    scores = torch.bmm(rows.reshape(B * T, -1, C), (flat + position).transpose(1, 2))
    return torch.bmm(scores.softmax(dim=-1), flat).view(rows.shape)


def scatter(features: Tensor, position: Tensor, rows: Tensor, offsets: Tensor, values: Tensor) -> Tensor:
    """Lets pixels read the dictionary: softmax over classes of rows . (E + P) + offsets, times values, over all heads.

    Args:
        features: E, B T N C.
        position: P, N C.
        rows: B S H K C, keys carried to pixel space and scaled.
        offsets: B S H K, what the query bias adds to the scores.
        values: B S H K C, values carried to pixel space.

    Returns:
        B S N C, what the attention adds to the pixel features, without its output bias.
    """
    B, S, H, K, C = rows.shape
    T, N = features.shape[1:3]
    moved = (features + position).reshape(B * T, N, C).transpose(1, 2)
    scores = torch.baddbmm(offsets.reshape(B * T, -1, 1), rows.reshape(B * T, -1, C), moved)
    attention = scores.view(B * S, H, K, N).softmax(dim=2).view(B * S, H * K, N)
    return torch.bmm(attention.transpose(1, 2), values.reshape(B * S, H * K, C)).view(B, S, N, C)

"""Boundaries between classes, on label images and predictions alike.

Distances are in pixels, the larger of the row and the column distance: the square neighbourhood of the authors' code of
boundary IoU. Pixels labelled 255, and what lies beyond the image, are no other class: they form no boundary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from d2ls.labels import IGNORE


def near_boundary(ids: Tensor, distance: int) -> Tensor:
    """Marks the pixels that have a pixel of another class within a distance; 1 marks both sides of each boundary.

    Args:
        ids: B H W, class ids or 255, any integer type.
        distance: in pixels, at least 1.

    Returns:
        B H W, bool; False where the id is 255.
    """
    values, unlabelled = ids.unsqueeze(1).float(), (ids == IGNORE).unsqueeze(1)
    highest = _neighbourhood_max(values.masked_fill(unlabelled, -torch.inf), distance)
    lowest = -_neighbourhood_max((-values).masked_fill(unlabelled, -torch.inf), distance)
    return ((highest != lowest) & ~unlabelled).squeeze(1)


def _neighbourhood_max(values: Tensor, distance: int) -> Tensor:
    """Takes the highest value of the square around each pixel of B C H W, row by row and then column by column."""
    side = 2 * distance + 1
    rows = F.max_pool2d(values, (1, side), stride=1, padding=(0, distance))
    return F.max_pool2d(rows, (side, 1), stride=1, padding=(distance, 0))

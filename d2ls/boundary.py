"""Boundaries between classes, on label images and predictions alike.

Distances are in pixels, the larger of the row and the column distance: the square neighbourhood of the authors' code of
boundary IoU. Pixels labelled 255 and the edges of the image form no boundary.
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


def boundary_counts(predictions: Tensor, labels: Tensor, num_classes: int, distance: int) -> Tensor:
    """Counts the pixels from which boundary IoU and boundary F1 of an image are computed.

    Pixels without a label are removed from the predictions first. So a prediction that is right on every labelled
    pixel has the same boundaries as the labels.

    Args:
        predictions: H W, class ids, any integer type.
        labels: H W, class ids or 255, on the same device.
        num_classes: K.
        distance: in pixels, at least 1.

    Returns:
        K 7, int64, numbers of pixels. 0 to 2, near a boundary: predicted as the class, labelled as it, both. 3 and 4:
        pixels on the predicted boundary of the class (another class is next to them), and those of them within the
        distance of its labelled boundary. 5 and 6: pixels on the labelled boundary, and those of them within the
        distance of the predicted one.
    """
    labels = labels.long()
    pair = torch.stack([predictions.long().masked_fill(labels == IGNORE, IGNORE), labels])
    near, edge = near_boundary(pair, distance), near_boundary(pair, 1)
    both = near.all(dim=0) & (pair[0] == pair[1])

    def by_class(ids: Tensor, mask: Tensor) -> Tensor:
        return ids[mask].bincount(minlength=num_classes)

    hits = [_hits(edge & (pair == index), distance) for index in range(num_classes)]
    return torch.stack(
        [
            by_class(pair[0], near[0]), by_class(pair[1], near[1]), by_class(labels, both),
            by_class(pair[0], edge[0]), torch.stack([hit[0] for hit in hits]),
            by_class(pair[1], edge[1]), torch.stack([hit[1] for hit in hits]),
        ],
        dim=1,
    )  # fmt: skip


def _hits(edges: Tensor, distance: int) -> Tensor:
    """Counts the pixels of each of two edges, 2 H W, that lie within the distance of the other one."""
    reach = _neighbourhood_max(edges.unsqueeze(1).float(), distance).squeeze(1) > 0
    return (edges & reach.flip(0)).sum(dim=(1, 2))


def _neighbourhood_max(values: Tensor, distance: int) -> Tensor:
    """Takes the highest value of the square around each pixel of B C H W, row by row and then column by column."""
    side = 2 * distance + 1
    rows = F.max_pool2d(values, (1, side), stride=1, padding=(0, distance))
    return F.max_pool2d(rows, (side, 1), stride=1, padding=(distance, 0))

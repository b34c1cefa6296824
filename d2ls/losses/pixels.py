"""Terms that are a sum over pixels; pixels labelled 255 add nothing."""

import torch.nn.functional as F
from torch import Tensor

from d2ls.labels import IGNORE


def cross_entropy_sum(
    logits: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    pixel_weights: Tensor | None = None,
) -> Tensor:
    """Sums the cross entropy over the labelled pixels of this rank.

    Args:
        logits: B K H W.
        labels: B H W, int64, class ids or 255.
        label_smoothing: share of the target spread over all classes.
        class_weights: K; each class's part of the target is weighted, as `torch.nn.CrossEntropyLoss` does.
        pixel_weights: B H W.

    Returns:
        A scalar, float32.
    """
    values: Tensor = F.cross_entropy(
        logits.float(),
        labels,
        weight=class_weights,
        ignore_index=IGNORE,
        label_smoothing=label_smoothing,
        reduction="sum" if pixel_weights is None else "none",
    )
    return values if pixel_weights is None else (values * pixel_weights).sum()


def focal_sum(
    logits: Tensor,
    labels: Tensor,
    *,
    gamma: float,
    class_weights: Tensor | None = None,
    pixel_weights: Tensor | None = None,
) -> Tensor:
    """Sums the focal loss, (1 - p)^gamma times the cross entropy, over the labelled pixels of this rank.

    Args:
        logits: B K H W.
        labels: B H W, int64, class ids or 255.
        gamma: 0 gives the cross entropy; more takes weight from pixels that are right already.
        class_weights: K, by the class of the label (alpha in the paper).
        pixel_weights: B H W.

    Returns:
        A scalar, float32.

    Source: Lin, Goyal, Girshick, He, Dollár, "Focal Loss for Dense Object Detection" (2017), equation 5.
    """
    surprise = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="none")
    # 1 - p without cancellation; never quite 0, where the power has no finite gradient for a gamma below 1.
    missing = (-(-surprise).expm1()).clamp_min(1e-8)
    values = missing**gamma * surprise
    if class_weights is not None:
        values = values * class_weights[labels.where(labels != IGNORE, 0)]
    return values.sum() if pixel_weights is None else (values * pixel_weights).sum()

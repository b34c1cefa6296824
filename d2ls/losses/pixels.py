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

    `torch.nn.CrossEntropyLoss` weights each class's part of a smoothed target instead. A class that weighs about
    K / label_smoothing times as much as that of the label is then the best prediction for the pixel.

    Args:
        logits: B K H W.
        labels: B H W, int64, class ids or 255.
        label_smoothing: share of the target spread over all classes.
        class_weights: K, by the class of the label.
        pixel_weights: B H W.

    Returns:
        A scalar, float32.
    """
    values = F.cross_entropy(
        logits.float(), labels, ignore_index=IGNORE, label_smoothing=label_smoothing, reduction="none"
    )
    return _weighted_sum(values, labels, class_weights, pixel_weights)


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
    return _weighted_sum(missing**gamma * surprise, labels, class_weights, pixel_weights)


def _weighted_sum(
    values: Tensor, labels: Tensor, class_weights: Tensor | None, pixel_weights: Tensor | None
) -> Tensor:
    """Sums B H W values, times the weight of the class of the label, times that of the pixel."""
    if class_weights is not None:
        values = values * class_weights[labels.where(labels != IGNORE, 0)]
    return values.sum() if pixel_weights is None else (values * pixel_weights).sum()

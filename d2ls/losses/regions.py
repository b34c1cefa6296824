"""Terms that compare the regions of a class; pixels labelled 255 belong to none and add nothing.

Dice is taken over all images of a micro-step together. Tversky and Lovász are taken image by image, so their mean does
not depend on how the images are dealt to ranks and micro-steps.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from d2ls.labels import IGNORE


def overlap_sums(logits: Tensor, labels: Tensor, axes: Sequence[int] = (0, 2, 3)) -> Tensor:
    """Computes the sums that Dice and Tversky consist of, over the labelled pixels of this rank.

    Args:
        logits: B K H W.
        labels: B H W, class ids or 255.
        axes: of B K H W, to sum over; (2, 3) keeps images apart.

    Returns:
        3 K (or 3 B K), float32, for each class: probability on its own pixels, probability anywhere, pixels.
    """
    probabilities = logits.float().softmax(dim=1)
    truth = _one_hot(labels, logits.shape[1]).float()
    labelled = (labels != IGNORE).unsqueeze(1).float()
    pixels = tuple(axes)
    return torch.stack(
        [(probabilities * truth).sum(pixels), (probabilities * labelled).sum(pixels), truth.sum(pixels)]
    )


def dice_loss(sums: Tensor, smooth: float) -> Tensor:
    """Computes Dice from `overlap_sums` (3 K): the mean over all K, where a class without pixels adds 0."""
    overlap, predicted, present = sums
    score = (2 * overlap + smooth) / (predicted + present + smooth).clamp_min(1e-7)
    return ((1 - score) * (present > 0)).mean()


def tversky_sum(logits: Tensor, labels: Tensor, *, alpha: float, beta: float) -> Tensor:
    """Sums the Tversky loss over the images of this rank.

    For an image it is the mean of 1 - TP / (TP + alpha FP + beta FN) over the classes in its labels, with probabilities
    in place of counts. alpha = beta = 0.5 is Dice, alpha = beta = 1 is IoU.

    Args:
        logits: B K H W.
        labels: B H W, class ids or 255.
        alpha: weight of false positives.
        beta: weight of false negatives.

    Returns:
        A scalar, float32.

    Source: Salehi, Erdogmus, Gholipour, "Tversky loss function for image segmentation" (2017), equation 4.
    """
    overlap, predicted, present = overlap_sums(logits, labels, axes=(2, 3))
    wrong = alpha * (predicted - overlap) + beta * (present - overlap)
    return _mean_over_shown(1 - overlap / (overlap + wrong).clamp_min(1e-7), present).sum()


def lovasz_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Sums the Lovász-softmax loss over the images of this rank.

    For each class in an image's labels, the Lovász extension of its Jaccard loss is taken at the errors |truth -
    probability|. The loss of the image is the mean over these classes.

    Args:
        logits: B K H W.
        labels: B H W, class ids or 255.

    Returns:
        A scalar, float32.

    Source: Berman, Rannen Triki, Blaschko, "The Lovász-Softmax loss" (2018), equations 9 and 11, image by image.
    """
    probabilities = logits.float().softmax(dim=1).flatten(2)
    truth = _one_hot(labels, logits.shape[1]).flatten(2)
    errors = torch.where(truth, 1 - probabilities, probabilities)
    # Below every error: pixels without a label come last, and then weigh nothing.
    errors = errors.masked_fill((labels == IGNORE).flatten(1).unsqueeze(1), -1)
    errors, order = errors.sort(dim=-1, descending=True)
    own = truth.gather(-1, order)
    present = truth.sum(-1, keepdim=True, dtype=torch.float32)
    cumulative = own.cumsum(-1, dtype=torch.float32)
    left = present - cumulative
    union = torch.arange(1, own.shape[-1] + 1, device=own.device) + left
    # How much each pixel in turn adds to the Jaccard loss 1 - left / union, without the difference of close numbers.
    steps = torch.where(own, 1 / union, left / (union * (union - 1)).clamp_min(1))
    return _mean_over_shown((errors.clamp_min(0) * steps).sum(-1), present.squeeze(-1)).sum()


def _one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """B H W ids to B K H W flags."""
    return labels.unsqueeze(1) == torch.arange(num_classes, device=labels.device).view(1, -1, 1, 1)


def _mean_over_shown(values: Tensor, present: Tensor) -> Tensor:
    """Takes the mean of B K values over the classes with pixels in each image; 0 where there are none."""
    shown = present > 0
    return (values * shown).sum(1) / shown.sum(1).clamp_min(1)

"""Contrastive terms: class vectors of one class agree over images, those of other classes differ."""

import torch
import torch.nn.functional as F
from torch import Tensor

from d2ls.distributed import gather_over_ranks, sum_over_ranks


def contrastive_ratio(dictionary: Tensor) -> Tensor:
    """Computes the published contrastive term over the images of all ranks.

    It is a quotient. The numerator is the mean squared distance of the class vectors to the mean of their class over
    the batch. The denominator is the mean squared distance between the means of two classes, plus 1e-6. It is 0 where
    all ranks together have one image.

    Args:
        dictionary: D0 of this rank, B K C; B may differ between ranks.
    """
    vectors = dictionary.float()
    B, K, _ = vectors.shape
    sums = torch.cat([vectors.sum(0).flatten(), vectors.new_full((1,), B)])
    total, images = sum_over_ranks(sums).tensor_split([-1])
    means = (total / images).view(K, -1)
    within = sum_over_ranks((vectors - means).pow(2).sum()) / (images * K)
    between = 2 * (means - means.mean(0)).pow(2).sum() / (K - 1)
    return (within / (between + 1e-6)).squeeze(0)


def infonce(dictionary: Tensor, static: Tensor, temperature: float) -> Tensor:
    """Computes a contrastive term with a temperature (this project's form) over the images of all ranks.

    Anchors are the class vectors of every image. Candidates are the class vectors of all other images and the static
    ones. Positives are the candidates of the same class. All have unit length. The value is the mean, over anchors
    and positives, of minus the log probability of the positive among the candidates. It is defined for one image too.

    Args:
        dictionary: D0 of this rank, B K C; B may differ between ranks.
        static: K C, the same on all ranks.
        temperature: divides the cosines.
    """
    images = gather_over_ranks(dictionary.float())
    B, K, C = images.shape
    anchors = F.normalize(images.reshape(B * K, C), dim=-1)
    candidates = torch.cat([anchors, F.normalize(static.float(), dim=-1)])
    image_of = torch.arange(B + 1, device=images.device).repeat_interleave(K)
    class_of = torch.arange(K, device=images.device).repeat(B + 1)
    other = image_of[: B * K, None] != image_of
    with torch.autocast(images.device.type, enabled=False):
        scores = (anchors @ candidates.mT / temperature).masked_fill(~other, -torch.inf)
    positive = (class_of[: B * K, None] == class_of) & other
    surprise = scores.logsumexp(dim=1, keepdim=True) - scores.masked_fill(~positive, 0)
    return (surprise * positive).sum() / positive.sum()

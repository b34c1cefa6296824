"""Fits the temperature at which the probabilities of a model agree best with the labels of a split.

Source: Guo et al. (2017), On calibration of modern neural networks. The probabilities of a pixel with logits z are
softmax(z / T), which keeps the order of its classes. The temperature T is the one at which the negative
log-likelihood L of the labels y is lowest. With b = 1 / T:

    L(b) = sum over pixels of log(sum_k exp(b z_k)) - b z_y
    L'(b) = sum over pixels of E_b[z] - z_y        E_b[z] = sum_k z_k softmax(b z)_k

L is convex, because L'' is a sum of variances. So L' rises and crosses zero once. One pass over a split adds up L' at
some fixed temperatures. The crossing is interpolated in log T between two of them. This T is within 0.5 % of the
one that minimises L. The sums of parts of a split add up.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from d2ls.errors import NonFiniteOutputError
from d2ls.labels import IGNORE

Slopes = npt.NDArray[np.float64]

TEMPERATURES = np.geomspace(0.25, 8.0, 33)
"""Temperatures at which L' is computed, 11 % apart; a fitted temperature lies between the first and the last."""

PIXELS_AT_ONCE = 2**16
"""Number of pixels whose values fit into the cache of a processor."""


def likelihood_slopes(logits: Tensor, labels: Tensor) -> Slopes:
    """Adds up L' over the labelled pixels of a batch.

    Args:
        logits: B K H W.
        labels: B H W, class ids or 255 (left out), on the same device.

    Returns:
        A sum for each of `TEMPERATURES`.
    """
    kept = labels != IGNORE
    scores, truth = logits.float().movedim(1, 0)[:, kept], labels[kept].long()  # K N, N
    total = scores.new_zeros(len(TEMPERATURES), dtype=torch.float64)
    for start in range(0, len(truth), PIXELS_AT_ONCE):
        part = scores[:, start : start + PIXELS_AT_ONCE]
        part = part - part.amax(dim=0)
        of_label = part.gather(0, truth[None, start : start + PIXELS_AT_ONCE])[0]
        for index, temperature in enumerate(TEMPERATURES.tolist()):
            weights = (part / temperature).exp_()
            means = (weights * part).sum(dim=0) / weights.sum(dim=0)
            total[index] += (means - of_label).sum(dtype=torch.float64)
    return total.cpu().numpy()


def best_temperature(slopes: Sequence[Slopes]) -> float | None:
    """Returns the temperature at which the labels are most likely, to four digits.

    Args:
        slopes: of `likelihood_slopes`, of all parts of a split.

    Returns:
        None if no pixel is labelled.

    Raises:
        NonFiniteOutputError: logits of labelled pixels are not finite.
    """
    sums = np.sum(slopes, axis=0)
    if not np.isfinite(sums).all():
        raise NonFiniteOutputError(
            "no temperature can be fitted, because logits of labelled pixels are not finite"
        )
    if not sums.any():
        return None
    # from the highest temperature to the lowest, L' rises
    logarithm = np.interp(0.0, sums[::-1], np.log(TEMPERATURES[::-1]))
    return float(f"{math.exp(logarithm):.4g}")

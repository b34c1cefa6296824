"""Scores from integer counts over a whole split, which add up exactly. The NumPy side needs no PyTorch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from d2ls.errors import ConfigError, LabelError, NonFiniteOutputError
from d2ls.labels import IGNORE

if TYPE_CHECKING:
    from torch import Tensor

Ids = TypeVar("Ids", "npt.NDArray[Any]", "Tensor")

BINS = 15
"""Equal-width bins of the winning probability; bin b holds those above b / 15, up to (b + 1) / 15."""

PROBABILITY_BITS = 24
"""Probabilities are summed as multiples of 2**-24, the precision of float32 below 1, so that sums are exact."""


def confusion_matrix(predictions: Ids, labels: Ids, num_classes: int) -> Ids:
    """Counts pixels by true and predicted class; pixels labelled 255 are left out.

    Args:
        predictions: class ids 0..K-1, any shape and integer type; NumPy or torch.
        labels: class ids or 255, the same shape and kind.
        num_classes: K.

    Returns:
        K x K, int64, rows are the truth, columns the prediction; of the kind (and on the device) of the labels.

    Raises:
        LabelError: an id outside 0..K-1 (and not 255).
    """
    if predictions.shape != labels.shape:
        raise LabelError(
            f"predictions {tuple(predictions.shape)} and labels {tuple(labels.shape)} differ in shape"
        )
    count = _count_numpy if isinstance(labels, np.ndarray) else _count_torch
    counts = count(predictions, labels, num_classes)
    if bool((counts[-1] > 0).any()) or bool((counts[:, -1] > 0).any()):
        raise LabelError(f"a label or a prediction is outside 0..{num_classes - 1} (and no {IGNORE})")
    kept: Ids = counts[:-1, :-1]
    return kept


def _count_numpy(predictions: npt.NDArray[Any], labels: npt.NDArray[Any], K: int) -> npt.NDArray[np.int64]:
    """Counts into (K+1) x (K+1); the last row and column hold ids that do not exist."""
    kept = labels != IGNORE
    truth, estimate = (_confined_numpy(ids[kept].astype(np.int64), K) for ids in (labels, predictions))
    return (
        np.bincount(truth * (K + 1) + estimate, minlength=(K + 1) ** 2).reshape(K + 1, K + 1).astype(np.int64)
    )


def _confined_numpy(ids: npt.NDArray[np.int64], K: int) -> npt.NDArray[np.int64]:
    return np.where((ids >= 0) & (ids < K), ids, K)


def _count_torch(predictions: Tensor, labels: Tensor, K: int) -> Tensor:
    """As `_count_numpy`, on the device of the labels."""
    kept = labels != IGNORE
    truth, estimate = (ids.to(labels.device)[kept].long() for ids in (labels, predictions))
    truth, estimate = (ids.where((ids >= 0) & (ids < K), ids.new_full((), K)) for ids in (truth, estimate))
    return (truth * (K + 1) + estimate).bincount(minlength=(K + 1) ** 2).view(K + 1, K + 1)


def winning_class(logits: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Returns the class of the highest logit, and its probability by softmax(logits / temperature).

    Args:
        logits: B K ..., floating point.
        temperature: does not change the class.

    Returns:
        Class ids (int64) and probabilities (float32), B ...
    """
    logits = logits.float()
    best, classes = logits.max(dim=1)  # on a CPU several times as fast as argmax
    return classes, ((logits - best.unsqueeze(1)) / temperature).exp().sum(dim=1).reciprocal()


def calibration_counts(
    confidence: Tensor, predictions: Tensor, labels: Tensor, *, where: str = "the network's output"
) -> Tensor:
    """Counts labelled pixels by the probability of the predicted class.

    Args:
        confidence: that probability, 0..1, any shape.
        predictions: class ids, the same shape.
        labels: class ids or 255 (left out), the same shape, on the same device.
        where: names what is counted in an error.

    Returns:
        BINS x 3, int64: pixels, correct pixels, and the sum of the probabilities in steps of 2**-24.

    Raises:
        NonFiniteOutputError: a labelled pixel has no probability: its logits are not finite.
    """
    kept = labels != IGNORE
    sure = confidence[kept]
    missing = int((~((sure >= 0) & (sure <= 1))).sum())
    if missing:
        raise NonFiniteOutputError(
            f"{where}: {missing} of {len(sure)} labelled pixels have no probability, because logits are not finite. "
            "Weights or pixel values are too large: train with train.precision fp32 and a lower train.optimizer.lr, "
            "and look at the pixel values"
        )
    steps = (sure * 2**PROBABILITY_BITS).round().long()
    bins = ((steps * BINS - 1) >> PROBABILITY_BITS).clamp(0, BINS - 1)
    correct = (predictions[kept] == labels[kept]).long()
    pairs = (2 * bins + correct).bincount(minlength=2 * BINS).view(BINS, 2)
    sums = steps.new_zeros(BINS).scatter_add_(0, bins, steps)
    table = steps.new_empty(BINS, 3)
    table[:, 0], table[:, 1], table[:, 2] = pairs.sum(dim=1), pairs[:, 1], sums
    return table


def expected_calibration_error(counts: npt.NDArray[np.int64]) -> float:
    """Computes the mean distance of winning probability and accuracy over the bins, weighted by their pixels.

    Args:
        counts: BINS x 3, of `calibration_counts`; those of parts add up.

    Returns:
        0..1; NaN without pixels.

    Source:
        Guo et al. (2017), On calibration of modern neural networks, equation 3.
    """
    pixels, correct, steps = counts.T
    if not pixels.any():
        return math.nan
    return float(np.abs(correct - steps / 2**PROBABILITY_BITS).sum() / pixels.sum())


@dataclass(frozen=True)
class Scores:
    """Scores of K classes, and their means over the scored classes.

    A class that is neither in the labels nor predicted has no value: NaN, and it is left out of the means. A class
    that is predicted, but absent from the labels, has IoU and F1 of 0.

    Attributes:
        iou: intersection over union of each class, 0..1 or NaN.
        f1: harmonic mean of precision and recall of each class.
        precision: NaN for a class that is never predicted.
        recall: NaN for a class that is not in the labels.
        miou: mean IoU of the scored classes that have a value; NaN where none has.
        mf1: mean F1, likewise.
        overall_accuracy: share of correct pixels, over all classes, scored or not; NaN without pixels.
        scored: which classes are in the means.
        ece: expected calibration error of the winning probability, 0..1; NaN where probabilities were not counted.
    """

    iou: tuple[float, ...]
    f1: tuple[float, ...]
    precision: tuple[float, ...]
    recall: tuple[float, ...]
    miou: float
    mf1: float
    overall_accuracy: float
    scored: tuple[bool, ...]
    ece: float = math.nan

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values; lists instead of tuples."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def score(
    confusion: npt.NDArray[Any] | Tensor,
    scored: Sequence[bool] | None = None,
    calibration: npt.NDArray[np.int64] | None = None,
) -> Scores:
    """Computes scores.

    Args:
        confusion: K x K counts, rows are the truth.
        scored: K flags: which classes are in the means; None: all.
        calibration: BINS x 3, of `calibration_counts`; None: without `ece`.

    Raises:
        ConfigError: the flags do not fit the matrix.
    """
    table = confusion if isinstance(confusion, np.ndarray) else confusion.cpu().numpy()
    table = table.astype(np.float64)
    flags = (True,) * len(table) if scored is None else tuple(map(bool, scored))
    if table.shape != (len(flags), len(flags)):
        raise ConfigError(f"confusion matrix is {table.shape}, scored flags are {len(flags)}")
    hit, present, predicted = table.diagonal(), table.sum(axis=1), table.sum(axis=0)
    iou = _divide(hit, present + predicted - hit)
    f1 = _divide(2 * hit, present + predicted)
    return Scores(
        iou=tuple(iou),
        f1=tuple(f1),
        precision=tuple(_divide(hit, predicted)),
        recall=tuple(_divide(hit, present)),
        miou=_mean(iou, flags),
        mf1=_mean(f1, flags),
        overall_accuracy=_divide(hit.sum(keepdims=True), table.sum(keepdims=True).reshape(1))[0],
        scored=flags,
        ece=math.nan if calibration is None else expected_calibration_error(calibration),
    )


@dataclass(frozen=True)
class BoundaryScores:
    """Scores near class boundaries, and their means over the scored classes.

    All follow from pixels counted over the whole split. A class without a boundary in labels and predictions has no
    value: NaN, and it is left out of the means.

    Attributes:
        iou: boundary IoU of each class: IoU of its pixels near a boundary, of labels and prediction.
        f1: boundary F1 (BF score) of each class: harmonic mean of `precision` and `recall`, 0 where one is missing.
        precision: share of the predicted boundary within the distance of the labelled one; NaN without a predicted one.
        recall: share of the labelled boundary within the distance of the predicted one; NaN without a labelled one.
        miou: mean boundary IoU of the scored classes that have a value; NaN where none has.
        mf1: mean boundary F1, likewise.

    Source: Cheng, Girshick, Dollár, Berg, Kirillov, "Boundary IoU" (2021); Csurka, Larlus, Perronnin, "What is a good
    evaluation measure for semantic segmentation?" (2013).
    """

    iou: tuple[float, ...]
    f1: tuple[float, ...]
    precision: tuple[float, ...]
    recall: tuple[float, ...]
    miou: float
    mf1: float


def boundary_scores(counts: npt.NDArray[np.integer], scored: Sequence[bool]) -> BoundaryScores:
    """Computes boundary scores.

    Args:
        counts: K 7, see `d2ls.boundary.boundary_counts`.
        scored: K flags: which classes are in the means.
    """
    predicted_near, near, both, predicted_edge, precise, edge, recalled = counts.T.astype(np.float64)
    iou = _divide(both, predicted_near + near - both)
    precision, recall = _divide(precise, predicted_edge), _divide(recalled, edge)
    f1 = [
        math.nan if math.isnan(p) and math.isnan(r) else 2 * p * r / (p + r) if p > 0 and r > 0 else 0.0
        for p, r in zip(precision, recall, strict=True)
    ]
    return BoundaryScores(
        tuple(iou), tuple(f1), tuple(precision), tuple(recall), _mean(iou, scored), _mean(f1, scored)
    )


def _divide(above: npt.NDArray[Any], below: npt.NDArray[Any]) -> list[float]:
    pairs = zip(above.tolist(), below.tolist(), strict=True)
    return [part / whole if whole > 0 else math.nan for part, whole in pairs]


def _mean(values: Sequence[float], scored: Sequence[bool]) -> float:
    kept = [value for value, flag in zip(values, scored, strict=True) if flag and not math.isnan(value)]
    return sum(kept) / len(kept) if kept else math.nan

"""The result of an exact evaluation: counts by sample, and the scores that are computed from them."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from d2ls.labels import IGNORE, ClassTable
from d2ls.metrics import (
    BINS,
    PROBABILITY_BITS,
    BoundaryScores,
    Scores,
    boundary_scores,
    expected_calibration_error,
    score,
)

if TYPE_CHECKING:
    from d2ls.inference.class_mapping import ClassMapping
    from d2ls.inference.scoring import SampleCounts
    from pipeline.evaluation.class_map import ClassMap

Counts = npt.NDArray[np.int64]
Interval = tuple[float, float]
LEVEL = 0.95
"""Share of the bootstrap's values inside an interval."""


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of a model on a split; every labelled pixel is counted once.

    Attributes:
        model: as the request names it.
        dataset: name, protocol and digest of the shards.
        split: name of the split.
        classes: the K classes, with the flags of the data set for scored ones.
        samples: counts of each sample, sorted by key.
        settings: batch size, window, test-time augmentation, number of bootstrap resamplings.
        seconds: wall time.
        seen: whether the model was trained on shards with the same digest.
        temperature: at which the probabilities were counted; None: the model has none, which is 1.
        class_map: of a model of other classes than those of the shards.
        mapping: the same as class ids; `classes` are then the common classes.
        labelled: pixels of the split by class of the shards.
        boundary_px: distance of the boundary scores in pixels; None: not counted.
    """

    model: str
    dataset: Mapping[str, str]
    split: str
    classes: ClassTable
    samples: Sequence["SampleCounts"]
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    seen: bool = True
    temperature: float | None = None
    class_map: "ClassMap | None" = None
    mapping: "ClassMapping | None" = None
    labelled: Sequence[int] = ()
    boundary_px: int | None = None

    @cached_property
    def confusion(self) -> Counts:
        """K K pixel counts over the whole split, rows are the truth."""
        classes = self.classes.num_classes
        return sum((sample.confusion for sample in self.samples), np.zeros((classes, classes), np.int64))

    @cached_property
    def calibration(self) -> Counts:
        """2 BINS 3 counts by winning probability, at temperature 1 and at `temperature`."""
        return sum((sample.calibration for sample in self.samples), np.zeros((2, BINS, 3), np.int64))

    @property
    def uncalibrated_ece(self) -> float:
        """Expected calibration error at temperature 1."""
        return expected_calibration_error(self.calibration[0])

    @cached_property
    def scores(self) -> Scores:
        """Scores by the convention of the data set: means over scored classes only."""
        return score(self.confusion, self.classes.scored, self.calibration[1])

    @cached_property
    def boundary(self) -> BoundaryScores | None:
        """Boundary scores by the convention of the data set; None where boundaries were not counted."""
        counts = [sample.boundary for sample in self.samples if sample.boundary is not None]
        if self.boundary_px is None or not counts:
            return None
        return boundary_scores(np.sum(counts, axis=0), self.classes.scored)

    @cached_property
    def plain(self) -> Scores:
        """Scores with means over all classes."""
        return score(self.confusion, calibration=self.calibration[1])

    @cached_property
    def majority(self) -> Scores:
        """Scores of the constant prediction: the most frequent class of this split."""
        totals = self.confusion.sum(axis=1)
        guess = np.zeros_like(self.confusion)
        guess[:, totals.argmax()] = totals
        return score(guess, self.classes.scored)

    @cached_property
    def scenes(self) -> dict[str, Counts]:
        """Counts by scene."""
        return _by_scene((sample.scene, sample.confusion) for sample in self.samples)

    @cached_property
    def intervals(self) -> dict[str, Any]:
        """95 % bootstrap intervals over scenes: miou, mf1, overall_accuracy, and iou and f1 of each class.

        With boundaries also boundary_iou and boundary_f1.
        Empty for fewer than two scenes, which do not allow an estimate.
        """
        resamplings = int(self.settings.get("bootstrap", 0))
        if resamplings < 1 or len(self.scenes) < 2:
            return {}
        options = self.classes.scored, resamplings
        intervals = bootstrap(np.stack(list(self.scenes.values())), *options)
        if self.boundary is None:
            return intervals
        boundaries = _by_scene((s.scene, s.boundary) for s in self.samples if s.boundary is not None)
        return intervals | bootstrap_boundaries(np.stack(list(boundaries.values())), *options)

    @property
    def left_out(self) -> dict[str, int]:
        """Labelled pixels that a class map leaves out: by their `label`, and by the `prediction` of the others."""
        if self.mapping is None:
            return {"label": 0, "prediction": 0}
        by_label = sum(n for n, i in zip(self.labelled, self.mapping.labelled, strict=True) if i == IGNORE)
        return {
            "label": by_label,
            "prediction": sum(self.labelled) - by_label - int(self.confusion.sum()),
        }

    def ranked(self) -> list[tuple[str, float]]:
        """Samples from best to worst: key and share of correct pixels among the labelled."""
        shares = [(s.key, s.confusion.trace() / s.confusion.sum()) for s in self.samples if s.confusion.any()]
        return sorted(((key, float(share)) for key, share in shares), key=lambda pair: (-pair[1], pair[0]))

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values: `scores` by the data set's convention, `plain`, intervals, confusion, ranking ...

        `calibration.bins` are pixels, accuracy and mean probability of each bin of the winning probability.
        """
        ranked, boundary = self.ranked(), self.boundary
        means = {"boundary_iou": boundary.miou, "boundary_f1": boundary.mf1} if boundary else {}
        return {
            "model": self.model,
            "dataset": dict(self.dataset),
            "split": self.split,
            "samples": len(self.samples),
            "scenes": len(self.scenes),
            "labelled_pixels": int(self.confusion.sum()),
            "settings": dict(self.settings),
            "classes": self.classes.to_json(),
            "class_map": asdict(self.class_map) | {"left_out": self.left_out} if self.class_map else None,
            "scores": named_scores(self.scores, self.classes)
            | {name: _plain(value) for name, value in means.items()},
            "plain": named_scores(self.plain, self.classes),
            "majority": named_scores(self.majority, self.classes),
            "intervals": self.intervals,
            "calibration": {
                "temperature": self.temperature,
                "ece": _plain(self.scores.ece),
                "ece_at_temperature_1": _plain(self.uncalibrated_ece),
                "bins": [_bin(*row) for row in self.calibration[1].tolist()],
            },
            "boundary": {"pixels": self.boundary_px, **_by_class(boundary, self.classes)}
            if boundary
            else None,
            "confusion": self.confusion.tolist(),
            "best": [list(pair) for pair in ranked[:5]],
            "worst": [list(pair) for pair in ranked[-5:][::-1]],
            "seconds": round(self.seconds, 3),
        }

    def to_json(self) -> str:
        """Returns `to_dict` as indented JSON text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"


def named_scores(scores: Scores, classes: ClassTable) -> dict[str, Any]:
    """Plain values of scores; those of classes by name; None for NaN."""
    means = {
        "miou": scores.miou, "mf1": scores.mf1, "overall_accuracy": scores.overall_accuracy, "ece": scores.ece,
    }  # fmt: skip
    return {name: _plain(value) for name, value in means.items()} | _by_class(scores, classes)


def _by_class(scores: Scores | BoundaryScores, classes: ClassTable) -> dict[str, Any]:
    values = {}
    for name in ("iou", "f1", "precision", "recall"):
        pairs = zip(classes.names, getattr(scores, name), strict=True)
        values[name] = {class_name: _plain(value) for class_name, value in pairs}
    return values


def bootstrap(scenes: Counts, scored: Sequence[bool], resamplings: int) -> dict[str, Any]:
    """Draws scenes with replacement, scores the sum of their counts, and takes the middle 95 % of the values.

    Args:
        scenes: S K K counts.
        scored: K flags.
        resamplings: number of draws.

    Returns:
        `miou`, `mf1`, `overall_accuracy`: lowest and highest value; `iou`, `f1`: K such pairs, None without a value.
    """
    count, classes = scenes.shape[:2]
    draws = _draws(count, resamplings)
    sums = (draws @ scenes.reshape(count, -1).astype(np.float64)).reshape(-1, classes, classes)
    hit = np.diagonal(sums, axis1=1, axis2=2)
    present, predicted = sums.sum(axis=2), sums.sum(axis=1)
    flags = np.asarray(scored, bool)
    with np.errstate(invalid="ignore"):
        iou = hit / (present + predicted - hit)
        f1 = 2 * hit / (present + predicted)
        accuracy = hit.sum(axis=1) / sums.sum(axis=(1, 2))
    return {
        "miou": _interval(_mean(iou[:, flags])),
        "mf1": _interval(_mean(f1[:, flags])),
        "overall_accuracy": _interval(accuracy),
        "iou": [_interval(column) for column in iou.T],
        "f1": [_interval(column) for column in f1.T],
    }


def bootstrap_boundaries(
    scenes: Counts, scored: Sequence[bool], resamplings: int
) -> dict[str, Interval | None]:
    """Computes intervals of the mean boundary scores as `bootstrap` does, with the same draws.

    Args:
        scenes: S K 7 counts of `d2ls.boundary.boundary_counts`.
        scored: K flags.
        resamplings: number of draws.

    Returns:
        `boundary_iou`, `boundary_f1`: lowest and highest value.
    """
    sums = np.tensordot(_draws(len(scenes), resamplings), scenes.astype(np.float64), axes=1)
    scores = [boundary_scores(counts, scored) for counts in sums]
    return {
        "boundary_iou": _interval(np.array([score.miou for score in scores])),
        "boundary_f1": _interval(np.array([score.mf1 for score in scores])),
    }


def _by_scene(counts: Iterable[tuple[str, Counts]]) -> dict[str, Counts]:
    sums: dict[str, Counts] = {}
    for scene, values in counts:
        sums[scene] = sums.get(scene, 0) + values
    return sums


def _draws(count: int, resamplings: int) -> npt.NDArray[np.int64]:
    """How often each of `count` scenes is drawn, resamplings by count; the same in every call."""
    return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), resamplings)


def _mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean over the classes whose value is not NaN."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(axis=1)
    count = known.sum(axis=1)
    return np.divide(total, count, out=np.full(len(values), math.nan), where=count > 0)


def _interval(values: npt.NDArray[np.float64]) -> Interval | None:
    known = values[~np.isnan(values)]
    if not known.size:
        return None
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _bin(pixels: int, correct: int, steps: int) -> tuple[int, float | None, float | None]:
    if not pixels:
        return 0, None, None
    return pixels, correct / pixels, steps / pixels / 2**PROBABILITY_BITS

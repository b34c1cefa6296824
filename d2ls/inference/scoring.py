"""Counts per sample. All scores of an evaluation are computed from their sums."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from d2ls.inference.class_mapping import ClassMapping
from d2ls.metrics import calibration_counts, confusion_matrix, winning_class

if TYPE_CHECKING:
    from d2ls.data import Batch
    from d2ls.inference.predictor import Predictor

Counts = npt.NDArray[np.int64]


class SampleCounts(NamedTuple):
    """Confusion matrix of one sample, or of a window of it.

    Attributes:
        key: of the sample.
        scene: scene it was cut from.
        confusion: K K pixel counts, rows are the truth; pixels labelled 255 are left out.
        calibration: 2 BINS 3 counts by winning probability, at temperature 1 and at the model's temperature.
    """

    key: str
    scene: str
    confusion: Counts
    calibration: Counts


def count_samples(
    predictor: "Predictor", batches: "Iterable[Batch]", mapping: ClassMapping | None = None
) -> list[SampleCounts]:
    """Predicts evaluation batches and counts pixels by sample; samples that only fill up a batch are left out.

    A sample that comes in several windows gives several entries; `merge` adds them up.

    Args:
        predictor: the model.
        batches: of an `EvaluationLoader`.
        mapping: common classes of model and labels; None: they have the same.
    """
    num_classes = mapping.classes.num_classes if mapping else predictor.num_classes
    counted = []
    for batch in batches:
        logits = predictor.tensor_logits(batch.images)
        predicted, plain = winning_class(logits)
        tempered = plain if predictor.temperature == 1.0 else winning_class(logits, predictor.temperature)[1]
        labels = batch.labels.to(predictor.device)
        for place, (key, scene) in enumerate(zip(batch.keys, batch.scenes, strict=True)):
            if batch.valid[place]:
                pair = predicted[place], labels[place]
                if mapping:
                    pair = mapping.apply(*pair)
                confusion = confusion_matrix(*pair, num_classes)
                bins = torch.stack([calibration_counts(sure[place], *pair) for sure in (plain, tempered)])
                counted.append(SampleCounts(key, scene, confusion.cpu().numpy(), bins.cpu().numpy()))
    return counted


def merge(entries: Iterable[SampleCounts]) -> list[SampleCounts]:
    """Adds up the entries of each sample, sorted by key; the order of the entries does not matter."""
    merged: dict[str, SampleCounts] = {}
    for entry in entries:
        known = merged.get(entry.key)
        if known is not None:
            entry = entry._replace(
                confusion=known.confusion + entry.confusion, calibration=known.calibration + entry.calibration
            )
        merged[entry.key] = entry
    return [merged[key] for key in sorted(merged)]

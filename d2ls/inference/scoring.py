"""Confusion matrices per sample. All scores of an evaluation are computed from their sums."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from d2ls.metrics import confusion_matrix

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
    """

    key: str
    scene: str
    confusion: Counts


def count_samples(predictor: "Predictor", batches: "Iterable[Batch]") -> list[SampleCounts]:
    """Predicts evaluation batches and counts pixels by sample; samples that only fill up a batch are left out.

    A sample that comes in several windows gives several entries; `merge` adds them up.
    """
    found = []
    for batch in batches:
        predicted = predictor.tensor_labels(batch.images)
        labels = batch.labels.to(predictor.device)
        for place, (key, scene) in enumerate(zip(batch.keys, batch.scenes, strict=True)):
            if batch.valid[place]:
                counts = confusion_matrix(predicted[place], labels[place], predictor.num_classes)
                found.append(SampleCounts(key, scene, counts.cpu().numpy()))
    return found


def merge(entries: Iterable[SampleCounts]) -> list[SampleCounts]:
    """Adds up the entries of each sample, sorted by key; the order of the entries does not matter."""
    merged: dict[str, SampleCounts] = {}
    for entry in entries:
        known = merged.get(entry.key)
        total = entry.confusion if known is None else known.confusion + entry.confusion
        merged[entry.key] = entry._replace(confusion=total)
    return [merged[key] for key in sorted(merged)]

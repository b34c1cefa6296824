"""Counts per sample. All scores of an evaluation are computed from their sums."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from d2ls.boundary import boundary_counts
from d2ls.inference.class_mapping import ClassMapping
from d2ls.metrics import calibration_counts, confusion_matrix, winning_class
from d2ls.window import Window, window_around

if TYPE_CHECKING:
    from d2ls.data import Batch
    from d2ls.inference.predictor import Predictor

Counts = npt.NDArray[np.int64]


class Piece(NamedTuple):
    """Predicted and labelled ids (2 h w, uint8) of a part of a sample."""

    part: Window
    ids: npt.NDArray[np.uint8]


class SampleCounts(NamedTuple):
    """Counts of one sample, or of a part of it.

    Attributes:
        key: of the sample.
        scene: scene it was cut from.
        confusion: K K pixel counts, rows are the truth; pixels labelled 255 are left out.
        calibration: 2 BINS 3 counts by winning probability, at temperature 1 and at the model's temperature.
        boundary: K 7 counts of `d2ls.boundary.boundary_counts`; None: not counted, or not all pieces are there.
        pieces: parts that wait for the rest of the sample, because boundaries are counted in the whole sample.
        size: height and width of the sample.
    """

    key: str
    scene: str
    confusion: Counts
    calibration: Counts
    boundary: Counts | None = None
    pieces: tuple[Piece, ...] = ()
    size: tuple[int, int] = (0, 0)


def count_samples(
    predictor: "Predictor",
    batches: "Iterable[Batch]",
    mapping: ClassMapping | None = None,
    *,
    keep_pieces: bool = False,
) -> Iterator[SampleCounts]:
    """Predicts evaluation batches and counts pixels by sample; samples that only fill up a batch are left out.

    A sample that comes in several windows gives several entries; `merge` adds them up.

    Args:
        predictor: the model.
        batches: of an `EvaluationLoader`.
        mapping: common classes of model and labels; None: they have the same.
        keep_pieces: for boundaries, which `merge` counts.
    """
    num_classes = mapping.classes.num_classes if mapping else predictor.num_classes
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
                bins = torch.stack(
                    [
                        calibration_counts(sure[place], *pair, where=f"sample {key}")
                        for sure in (plain, tempered)
                    ]
                )
                size = batch.sizes[place]
                pieces: tuple[Piece, ...] = ()
                if keep_pieces:
                    part = batch.parts[place] or Window(0, 0, *size)
                    inside = part.relative_to(window_around(part, labels.shape[-1], *size))
                    ids = torch.stack([labels.to(torch.uint8) for labels in pair])
                    pieces = (Piece(part, ids[(slice(None), *inside.slices)].cpu().numpy()),)
                yield SampleCounts(
                    key, scene, confusion.cpu().numpy(), bins.cpu().numpy(), pieces=pieces, size=size
                )


def merge(
    entries: Iterable[SampleCounts], *, boundary_px: int | None = None, device: torch.device | str = "cpu"
) -> list[SampleCounts]:
    """Adds up the entries of each sample, sorted by key; the order of the entries does not matter.

    Args:
        entries: of any number of samples; several lists that were merged may be merged again.
        boundary_px: count boundaries at this distance in each sample whose pieces are complete.
        device: where to count them.
    """
    merged: dict[str, SampleCounts] = {}
    for entry in entries:
        known = merged.get(entry.key)
        if known is not None:
            entry = entry._replace(
                confusion=known.confusion + entry.confusion,
                calibration=known.calibration + entry.calibration,
                pieces=known.pieces + entry.pieces,
            )
        if boundary_px is not None and entry.boundary is None:
            entry = _with_boundary(entry, boundary_px, device)
        merged[entry.key] = entry
    return [merged[key] for key in sorted(merged)]


def _with_boundary(entry: SampleCounts, distance: int, device: torch.device | str) -> SampleCounts:
    """Puts the pieces of a sample together and counts its boundaries, where no piece is missing."""
    height, width = entry.size
    if sum(piece.ids[0].size for piece in entry.pieces) < height * width:
        return entry
    ids = np.empty((2, height, width), np.uint8)
    for piece in entry.pieces:
        ids[(slice(None), *piece.part.slices)] = piece.ids
    predictions, labels = torch.from_numpy(ids).to(device)
    counts = boundary_counts(predictions, labels, len(entry.confusion), distance)
    return entry._replace(boundary=counts.cpu().numpy(), pieces=())

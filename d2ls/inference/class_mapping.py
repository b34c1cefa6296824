"""Compares predictions with labels of other classes: maps both to common classes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from d2ls.labels import IGNORE, ClassTable


@dataclass(frozen=True)
class ClassMapping:
    """The common classes of a model and of labels.

    Attributes:
        classes: the K common classes.
        model_classes: classes of the model.
        predicted: common class id of each class of the model, or 255: pixels predicted as it are left out.
        label_classes: classes of the labels.
        labelled: common class id of each class of the labels, or 255: pixels labelled as it are left out.
    """

    classes: ClassTable
    model_classes: ClassTable
    predicted: tuple[int, ...]
    label_classes: ClassTable
    labelled: tuple[int, ...]

    def apply(self, predictions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Translates a prediction and its labels.

        Args:
            predictions: class ids of the model, any shape: the winners among its own classes.
            labels: class ids of the labels or 255, the same shape.

        Returns:
            Both as common class ids, uint8; the label is 255 where the prediction is left out.
        """
        common = _translated(predictions, self.predicted)
        return common, _translated(labels, self.labelled).masked_fill(common == IGNORE, IGNORE)


def _translated(ids: Tensor, targets: tuple[int, ...]) -> Tensor:
    table = torch.full((256,), IGNORE, dtype=torch.uint8, device=ids.device)
    table[: len(targets)] = torch.tensor(targets, dtype=torch.uint8, device=ids.device)
    return table[ids.long()]

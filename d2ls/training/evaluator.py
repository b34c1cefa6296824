"""Exact evaluation: every labelled pixel once, integer counts, the same for any number of ranks."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from d2ls.data import Batch
from d2ls.labels import IGNORE, ClassTable
from d2ls.metrics import BINS, Scores, calibration_counts, confusion_matrix, score, winning_class
from d2ls.training.device import Precision, open_device
from d2ls.training.process_group import ProcessGroup


@dataclass(frozen=True)
class Evaluator:
    """Evaluates a network on one split.

    Attributes:
        split: its name, for reports.
        classes: the K classes.
        batches: makes this rank's evaluation batches, anew for every evaluation.
        group: the ranks that share the split.
        precision: as in training.
    """

    split: str
    classes: ClassTable
    batches: Callable[[], Iterable[Batch]]
    group: ProcessGroup
    precision: Precision = "fp32"

    @torch.inference_mode()
    def __call__(self, network: nn.Module) -> tuple[npt.NDArray[np.int64], Scores]:
        """Evaluates the network.

        No rank waits for another one before its own share is done, so ranks may have unequal shares.

        Args:
            network: in evaluation mode, unwrapped; takes raw pixels.

        Returns:
            The confusion matrix over all ranks, K K int64, rows are the truth; and the scores.

        Raises:
            NonFiniteOutputError: on this rank, if the network's output for one of its samples is not finite.
        """
        classes, device = self.classes.num_classes, open_device(self.group.device)
        forward = device.inference(self.precision)
        confusion = torch.zeros(classes, classes, dtype=torch.int64, device=self.group.device)
        calibration = torch.zeros(BINS, 3, dtype=torch.int64, device=self.group.device)
        for batch in self.batches():
            on_device = device.upload(batch)
            labels = on_device.labels.masked_fill(~on_device.valid.view(-1, 1, 1), IGNORE)
            predictions, confidence = winning_class(forward(network, on_device.images))
            confusion += confusion_matrix(predictions, labels.long(), classes)
            samples = f"{self.split} samples {', '.join(batch.keys)}"
            calibration += calibration_counts(confidence, predictions, labels, where=samples)
        table, bins = (self.group.all_reduce_sum(counts).cpu().numpy() for counts in (confusion, calibration))
        return table, score(table, self.classes.scored, bins)

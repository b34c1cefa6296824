"""Callbacks of the trainer, and the reports they get: plain values, equal on every rank where not stated otherwise."""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from d2ls.labels import ClassTable
from d2ls.metrics import Scores
from d2ls.training.train_state import TrainingState

if TYPE_CHECKING:
    from torch import nn

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepReport:
    """One optimizer step that was made.

    Attributes:
        step: optimizer steps done so far, counted from 1 over the whole run.
        epoch: epoch of the step, counted from 1.
        steps_per_epoch: optimizer steps of an epoch.
        total_steps: optimizer steps the run has.
        terms: loss terms over all ranks, by name, with `total`.
        learning_rate: rate of the first parameter group.
        gradient_norm: before clipping.
        images_per_second: over all ranks.
        seconds: wall time of the step by part (`data`, `forward`, `backward`, `optimizer`) and of the whole `step`, of
            this rank.
        memory_bytes: peak device memory, or resident memory on CPU, of this rank.
        model_tflops: model FLOP/s of one device in 1e12 (see `d2ls.training.flops`); 0 where the crop is not known.
        mfu: `model_tflops` as a share of the device's peak; None where the peak is not known.
        seconds_spent: wall time of the run so far, over all sessions, as this rank measures it.
        time_budget: seconds after which the training ends; None: no limit.
    """

    step: int
    epoch: int
    steps_per_epoch: int
    total_steps: int
    terms: Mapping[str, float]
    learning_rate: float
    gradient_norm: float
    images_per_second: float
    seconds: Mapping[str, float]
    memory_bytes: int = 0
    model_tflops: float = 0.0
    mfu: float | None = None
    seconds_spent: float = 0.0
    time_budget: float | None = None


@dataclass(frozen=True)
class EvaluationReport:
    """One exact evaluation of the validation split, at the end of an epoch.

    Attributes:
        step: optimizer steps done.
        epoch: epochs done.
        split: name of the evaluated split.
        confusion: K K int64, rows are the truth, summed over all ranks.
        scores: computed from `confusion`, with `ece`.
        terms: mean training loss terms of the epoch.
        best: whether its mIoU is the highest so far.
        seconds: wall time of the evaluation.
        last: whether the training ends with it.
    """

    step: int
    epoch: int
    split: str
    confusion: npt.NDArray[np.int64]
    scores: Scores
    terms: Mapping[str, float] = field(default_factory=dict)
    best: bool = False
    seconds: float = 0.0
    last: bool = False


class Callback:
    """Hooks of the trainer, which do nothing unless overridden. The trainer calls them on every rank."""

    def on_start(self, history: Sequence[Mapping[str, float]]) -> None:
        """Called before the first step, with the flat metrics of the epochs that a resumed run has done already."""

    def on_step(self, report: StepReport) -> None:
        """Called after every optimizer step that was made."""

    def on_evaluation(self, report: EvaluationReport, network: "nn.Module") -> None:
        """Called after an evaluation; `network` is unwrapped, in evaluation mode, with averaged weights where used."""

    def on_epoch(self, metrics: Mapping[str, float]) -> None:
        """Called after every epoch, evaluated or not, with its flat metrics (see `flat_metrics`)."""

    def on_checkpoint(self, uri: str, report: EvaluationReport | None) -> None:
        """Called when a checkpoint is complete, on rank 0, which writes it; `report` is None in mid-epoch."""

    def on_end(self, state: TrainingState) -> None:
        """Called when the training has ended without an error."""

    def close(self) -> None:
        """Called at the end of the run, also after an error."""


def close_all(closers: Iterable[Callable[[], None]], *, failed: bool) -> None:
    """Calls every closer, whatever another one raises.

    Args:
        closers: methods that close something.
        failed: whether the run is ending by an error. If so, errors of closers are only logged. Otherwise the first
            error of a closer is raised, and further ones are logged.
    """
    first: Exception | None = None
    for close in closers:
        try:
            close()
        except Exception as error:
            if failed or first:
                _log.exception("%s failed too", close.__qualname__)
            first = first or error
    if first and not failed:
        raise first


def flat_metrics(
    epoch: int,
    step: int,
    terms: Mapping[str, float],
    classes: ClassTable,
    report: EvaluationReport | None = None,
) -> dict[str, float]:
    """Returns the metrics of an epoch by their tracked names: `train/loss`, `val/miou`, `val/iou/<class>`, ...

    Args:
        epoch: epochs done.
        step: optimizer steps done.
        terms: mean loss terms of the epoch.
        classes: names the classes.
        report: evaluation of the epoch, if there was one. Undefined scores (of a class without a pixel) are left out.
    """
    metrics = {"epoch": float(epoch), "step": float(step)}
    metrics |= loss_metrics("train", terms)
    return metrics if report is None else metrics | score_metrics(report.scores, classes)


def loss_metrics(group: str, terms: Mapping[str, float]) -> dict[str, float]:
    """Returns loss terms by their tracked names: `<group>/loss` for `total`, `<group>/dice`, ..."""
    return {f"{group}/{'loss' if name == 'total' else name}": value for name, value in terms.items()}


def score_metrics(scores: Scores, classes: ClassTable) -> dict[str, float]:
    """Returns scores by their tracked names: `val/miou`, `val/iou/<class>`, ...; undefined ones are left out."""
    values = {"miou": scores.miou, "mf1": scores.mf1, "oa": scores.overall_accuracy, "ece": scores.ece}
    values |= {f"iou/{name}": value for name, value in zip(classes.names, scores.iou, strict=True)}
    return {f"val/{name}": value for name, value in values.items() if math.isfinite(value)}

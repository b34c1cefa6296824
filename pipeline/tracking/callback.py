"""Logs a training to MLflow: metrics by step and epoch, and figures that change with the epochs."""

import logging
import math
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from d2ls.errors import D2LSError
from d2ls.training.callbacks import Callback, EvaluationReport, StepReport, loss_metrics, score_metrics
from pipeline import figures
from pipeline.tracking import connection, figure_samples
from pipeline.tracking.system_metrics import Monitor
from pipeline.tracking.writer import RunWriter

if TYPE_CHECKING:
    from torch import nn

    from d2ls.shards import ShardSet
    from pipeline.config import Recipe

LOG = logging.getLogger(__name__)
MOST_POINTS = 2000  # a curve with more points draws slowly and shows no more detail
WAITING_FIGURES = 3
PARTS = ("data", "forward", "backward", "optimizer")


class TrackingCallback(Callback):
    """Logs a training on rank 0. Calls return at once, even if the store does not answer.

    Args:
        store_uri: complete URI of the store.
        run_id: run that the driver opened.
        spool_folder: local folder for log entries that wait to be sent.
        recipe: the resolved recipe.
        shards: the opened shard set; figures show samples of its val split.
        started: when the run was started first, in seconds since the epoch; system metrics count from there.

    Raises:
        TrackingError: the store is an SQLite file that this machine does not see.
    """

    def __init__(
        self,
        store_uri: str,
        run_id: str,
        spool_folder: Path | str,
        recipe: "Recipe",
        shards: "ShardSet",
        started: float | None = None,
    ) -> None:
        file = connection.sqlite_file(store_uri)
        if file is not None and not file.is_file():
            connection.connect(store_uri)  # raises an error that tells what to do
        self.recipe, self.shards = recipe, shards
        folder = Path(spool_folder).absolute()
        self.writer = RunWriter(store_uri, run_id, folder)
        self.writer.tags({"hardware": _hardware()})
        self._monitor = Monitor(self.writer.metrics, started) if recipe.tracking.system_metrics else None
        self._terms: dict[str, list[float]] = {}
        self._steps: list[StepReport] = []
        self._shown: list[figure_samples.Shown] | None = None
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(maxsize=WAITING_FIGURES)
        self._drawer = threading.Thread(target=self._draw, name="figures", daemon=True)
        self._drawer.start()

    def on_start(self, history: Sequence[Mapping[str, float]]) -> None:
        """Logs the scores of earlier epochs once more: their entries may have waited on a machine that is lost.

        The writer skips points that the run already has.
        """
        best = -math.inf
        for row in history:
            score = row.get("val/miou", -math.inf)
            values = {key.replace("train/", "epoch/"): value for key, value in row.items() if key != "step"}
            if score > best:
                best = score
                values |= {"best/miou": score, "best/epoch": row["epoch"]}
            if any(key.startswith("val/") for key in row):
                self.writer.metrics(values, int(row["step"]))

    def on_step(self, report: StepReport) -> None:
        """Logs every few steps: the mean of each loss term since the last log, learning rate, speed."""
        self._steps.append(report)
        for name, value in report.terms.items():
            self._terms.setdefault(name, []).append(float(value))
        every = max(1, report.total_steps // MOST_POINTS)
        if report.step % every and report.step not in (1, report.total_steps):
            return
        values = loss_metrics("train", {name: float(np.mean(terms)) for name, terms in self._terms.items()})
        values["train/lr"] = report.learning_rate
        values["train/gradient_norm"] = report.gradient_norm
        values["speed/memory_gigabytes"] = report.memory_bytes / 1e9
        values |= self._speed()
        self._terms.clear()
        self._steps.clear()
        self.writer.metrics(values, report.step)

    def _speed(self) -> dict[str, float]:
        """Returns the speed since the last log: seconds of a step by part, and rates as means over time."""
        steps = self._steps
        clocks = {part: sum(step.seconds.get(part, 0.0) for step in steps) for part in ("step", *PARTS)}
        whole = max(clocks["step"], 1e-9)
        values = {f"speed/{part}_seconds": seconds / len(steps) for part, seconds in clocks.items()}
        values["speed/data_share"] = clocks["data"] / whole
        rates = {
            "speed/images_per_second": [step.images_per_second for step in steps],
            "speed/model_tflops": [step.model_tflops for step in steps],
            "speed/mfu": [step.mfu for step in steps if step.mfu is not None],
        }
        for name, numbers in rates.items():
            if numbers:
                values[name] = float(np.average(numbers, weights=[step.seconds["step"] for step in steps]))
        return values

    def on_evaluation(self, report: EvaluationReport, network: "nn.Module") -> None:
        """Logs scores, and every `figures_every` epochs the figures."""
        values = score_metrics(report.scores, self.shards.card.classes) | loss_metrics("epoch", report.terms)
        values |= {"epoch": float(report.epoch), "speed/evaluation_seconds": report.seconds}
        if report.best:
            values |= {"best/miou": report.scores.miou, "best/epoch": float(report.epoch)}
        self.writer.metrics(values, report.step)
        if report.last or report.epoch % self.recipe.tracking.figures_every == 0:
            self._figures(report, network)

    def close(self) -> None:
        """Draws and sends all waiting entries; those that the store does not take in time stay in the spool folder."""
        self._jobs.put(None)
        self._drawer.join(timeout=60.0)
        if self._monitor:
            self._monitor.close()
        self.writer.close()

    def _figures(self, report: EvaluationReport, network: "nn.Module") -> None:
        """Computes what needs the network in this thread; another thread draws."""
        classes = self.shards.card.classes
        if self._shown is None:
            self._shown = self._samples(report.split)
        jobs: dict[str, Callable[[], figures.Picture]] = {
            "confusion": lambda: figures.confusion_figure(report.confusion, classes),
            "class_iou": lambda: figures.class_bars(report.scores, classes),
        }
        if self._shown:
            shown = self._shown[: self.recipe.tracking.figure_samples]
            predictions, dictionaries, static = run_on_samples(network, self._shown)
            jobs["predictions"] = lambda: figures.prediction_sheet(
                [sample.image for sample in shown], [sample.labels for sample in shown],
                predictions[: len(shown)], classes, [sample.key for sample in shown],
            )  # fmt: skip
            if dictionaries:
                jobs["dictionary"] = lambda: figures.dictionary_map(dictionaries, static, classes)
                self._log_distances(dictionaries, report.step)
        try:
            self._jobs.put_nowait(lambda: self._log_all(jobs, report.step))
        except queue.Full:
            LOG.warning("figures of epoch %d are left out: drawing is slower than training", report.epoch)

    def _samples(self, split: str) -> list[figure_samples.Shown]:
        side = self.recipe.loader.augmentation.crop_size
        count = max(self.recipe.tracking.figure_samples, 4)
        try:
            return figure_samples.load(self.shards, split, count, side)
        except D2LSError as error:
            LOG.warning("no prediction figures: %s", error)
            return []

    def _log_distances(self, dictionaries: list[npt.NDArray[np.float32]], step: int) -> None:
        values: dict[str, float] = {}
        for stage, dictionary in enumerate(dictionaries):
            intra, inter = figures.dictionary_distances(dictionary)
            values |= {f"dictionary/intra/d{stage}": intra, f"dictionary/inter/d{stage}": inter}
        self.writer.metrics(values, step)

    def _log_all(self, jobs: dict[str, Callable[[], figures.Picture]], step: int) -> None:
        for key, job in jobs.items():
            self.writer.picture(key, job(), step)

    def _draw(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:  # a figure must not end a training
                LOG.exception("a figure could not be drawn")


@torch.inference_mode()
def run_on_samples(
    network: "nn.Module", shown: list[figure_samples.Shown]
) -> tuple[list[npt.NDArray[np.uint8]], list[npt.NDArray[np.float32]], npt.NDArray[np.float32] | None]:
    """Runs the network on single samples.

    Args:
        network: in evaluation mode; takes raw pixels.
        shown: N samples.

    Returns:
        N label maps; a dictionary (N K C) per stage, empty if the network has none; the static dictionary (K C).
    """
    device = next(network.parameters()).device
    predictions, vectors, static = [], [], None
    for sample in shown:
        plain = sample.image.astype(np.float32 if sample.image.dtype != np.uint8 else np.uint8)
        raw = torch.from_numpy(np.ascontiguousarray(plain)).permute(2, 0, 1)[None].to(device)
        output = network(raw, False)
        predictions.append(output.logits[0].argmax(dim=0).to(torch.uint8).cpu().numpy())
        vectors.append(
            [dictionary[0].float().cpu().numpy() for dictionary in getattr(output, "dictionaries", ())]
        )
        static = getattr(output, "static_dictionary", None)
    stages = [np.stack(stage) for stage in zip(*vectors, strict=True)]
    return predictions, stages, None if static is None else static.float().cpu().numpy()


def _hardware() -> str:
    from pipeline.tracking.run_tags import hardware

    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if torch.cuda.is_available():
        return f"{world} x {torch.cuda.get_device_name()}"
    return f"{world} x CPU, {hardware()}"

"""The training loop: from built objects to a trained network. Knows no Ray, no MLflow and no recipe file.

Runs in one process or in every process of a `torch.distributed` group alike.
"""

import contextlib
import inspect
import logging
import math
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from d2ls.errors import NonFiniteLossError
from d2ls.loader import Batch
from d2ls.training.batchnorm import normalize_over_ranks
from d2ls.training.checkpoint import Checkpointer
from d2ls.training.ema import AveragedWeights
from d2ls.training.evaluation import Evaluator
from d2ls.training.flops import peak_teraflops, training_flops
from d2ls.training.found import Found
from d2ls.training.memory import fitting_micro_batch, rehearsal
from d2ls.training.ranks import Ranks
from d2ls.training.reports import Callback, EvaluationReport, StepReport, flat_metrics
from d2ls.training.schedule import Schedule
from d2ls.training.state import TrainingState, seed_everything
from d2ls.training.step import GradientStep, MicroSteps, Precision, Stopwatch

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopSettings:
    """Plain settings of the loop.

    Attributes:
        global_batch: samples an optimizer step sees over all ranks.
        seed: random numbers of a step (stochastic depth) depend on (seed, step, rank) alone.
        micro_batch: most samples a rank takes at once; None: its whole share.
        clip_norm: largest gradient norm; None: not clipped.
        precision: fp32, tf32 or bf16 (autocast).
        compile: compile the network with torch.compile.
        channels_last: memory layout of images and weights.
        skip_non_finite: steps with a non-finite loss that may be skipped; 0 stops at the first.
        evaluate_every: epochs between evaluations; the last epoch is always evaluated.
        checkpoint_every_epochs: epochs between checkpoints; last and best are always written.
        checkpoint_every_steps: also every so many steps.
        sample_shape: C H W of the training crop; where it is known, a step's FLOPs are counted, and a GPU that is too
            small for the micro-batch is found out before the first step.
    """

    global_batch: int
    seed: int = 0
    micro_batch: int | None = None
    clip_norm: float | None = 1.0
    precision: Precision = "fp32"
    compile: bool = False
    channels_last: bool = False
    skip_non_finite: int = 0
    evaluate_every: int = 1
    checkpoint_every_epochs: int = 1
    checkpoint_every_steps: int | None = None
    sample_shape: tuple[int, int, int] | None = None


@dataclass
class Trainer:
    """Trains a network.

    Attributes:
        network: on the ranks' device; has `.normalization`, is called with normalised images.
        loss: takes (output, labels), returns `.terms` and `.total`, equal on all ranks.
        optimizer: over the network's parameters.
        schedule: learning rate by step; also says how many steps and epochs there are.
        batches: makes this rank's batches of an epoch (counted from 0) from a step of it on.
        evaluator: scores the network on the selection split.
        settings: plain settings.
        ranks: the ranks of the run.
        callbacks: told what happens, in this order, on every rank.
        checkpointer: None: nothing is written.
        averaged: averaged weights, where they are used.
    """

    network: nn.Module
    loss: nn.Module
    optimizer: Optimizer
    schedule: Schedule
    batches: Callable[[int, int], Iterable[Batch]]
    evaluator: Evaluator
    settings: LoopSettings
    ranks: Ranks = field(default_factory=Ranks)
    callbacks: Sequence[Callback] = ()
    checkpointer: Checkpointer | None = None
    averaged: AveragedWeights | None = None
    state: TrainingState = field(default_factory=TrainingState)

    def run(self) -> TrainingState:
        """Trains to the last epoch, from the newest complete checkpoint where there is one.

        Raises:
            NonFiniteLossError: on every rank, before the step.
            CheckpointError: a checkpoint cannot be written or read.
        """
        try:
            self._prepare()
            for callback in self.callbacks:
                callback.on_start(self.state.history)
            while self.state.step < self.schedule.total_steps:
                self._train_epoch()
                self._end_epoch()
            if self.checkpointer and self.ranks.first:
                self._tell_checkpoint(self.checkpointer.finished(wait=True))
        finally:
            for callback in self.callbacks:
                callback.close()
            if self.checkpointer:
                self.checkpointer.close()
        return self.state

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return self.state.step // self.schedule.steps_per_epoch

    def _prepare(self) -> None:
        if self.checkpointer:
            if self.ranks.first:
                self.checkpointer.clear_orphans()
            restored = self.checkpointer.restore(self.network, self.optimizer, self.averaged)
            if restored is not None:
                self.state = restored
                _log.info("going on after step %d", restored.step)
        _set_precision(self.settings.precision)
        if self.settings.channels_last:
            self.network.to(memory_format=torch.channels_last)
        self._step_flops = self._count_flops()
        self._peak = peak_teraflops(self.ranks.device, self.settings.precision)
        if self.settings.compile:
            self.network.compile()
        micro = MicroSteps.plan(self.settings.global_batch, self.ranks.world_size, self._micro_batch())
        if micro.describe():
            _log.info(micro.describe())
        self._gradients = GradientStep(
            self.network,
            _wrap(self.network, self.ranks),
            self.loss,
            micro,
            self.ranks,
            self.settings.precision,
            self.settings.channels_last,
        )
        self._parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self._watch = Stopwatch(self.ranks.device)
        self._saving: EvaluationReport | None = None

    def _count_flops(self) -> float:
        """Model FLOPs of a step on one device, counted by rank 0; 0 where the size of the crops is not known."""
        if self.settings.sample_shape is None or not self.ranks.first:
            return 0.0
        images = self.settings.global_batch / self.ranks.world_size
        return images * training_flops(self.network, self.settings.sample_shape)

    def _micro_batch(self) -> int | None:
        """The micro-batch asked for, or the largest that fits where a GPU is too small for it."""
        settings = self.settings
        if self.ranks.device.type != "cuda" or settings.sample_shape is None:
            return settings.micro_batch
        wanted = max(
            map(
                max, MicroSteps.plan(settings.global_batch, self.ranks.world_size, settings.micro_batch).parts
            )
        )
        attempt = rehearsal(self.network.train(), settings.sample_shape, self.ranks, settings.precision)
        found = fitting_micro_batch(wanted, attempt, self.ranks)
        return found if found < wanted else settings.micro_batch

    def _train_epoch(self) -> None:
        self.network.train()
        epoch, done = divmod(self.state.step, self.schedule.steps_per_epoch)
        batches = iter(self.batches(epoch, done))
        for _ in range(done, self.schedule.steps_per_epoch):
            start = time.perf_counter()
            batch = next(batches)
            self._train_step(batch, start)

    def _train_step(self, batch: Batch, start: float) -> None:
        waited = time.perf_counter() - start
        seed_everything(self.settings.seed, self.state.step, self.ranks.rank)
        rate = self.schedule.apply(self.optimizer, self.state.step)
        terms = self._gradients(batch, self._watch)
        with self._watch.part("optimizer"):
            norm = torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
            values = _floats({**terms, "gradient_norm": norm})
            usable = self.ranks.agree(all(map(math.isfinite, values.values())))
            if usable:
                self._update(norm)
        self.optimizer.zero_grad()
        self.state.step += 1
        norm_value = values.pop("gradient_norm")
        if usable:
            self.state.add_terms(values)
            self._report_step(values, norm_value, rate, waited, time.perf_counter() - start)
        else:
            self._skip(batch, {**values, "gradient_norm": norm_value})
        self._checkpoint_in_epoch()

    def _update(self, norm: torch.Tensor) -> None:
        if self.settings.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self.settings.clip_norm, norm)
        self.optimizer.step()
        if self.averaged:
            self.averaged.update(self.network)

    def _skip(self, batch: Batch, values: dict[str, float]) -> None:
        """Counts a step whose loss or gradient is not finite, or stops the run on every rank."""
        self._watch.take()
        self.state.skipped += 1
        keys = [key for share in self.ranks.gather(batch.keys) for key in share]
        facts = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        message = (
            f"step {self.state.step}: loss or gradient is not finite ({facts}); samples {', '.join(keys)}"
        )
        if self.state.skipped > self.settings.skip_non_finite:
            raise NonFiniteLossError(
                f"{message}. Stopped before the optimizer step"
                + (f"; {self.state.skipped - 1} were skipped before" if self.state.skipped > 1 else "")
                + ". Lower train.optimizer.lr, look at these samples, use precision fp32, or set train.non_finite=skip"
            )
        _log.warning("%s. Skipped, %d of %d", message, self.state.skipped, self.settings.skip_non_finite)

    def _report_step(
        self, terms: dict[str, float], norm: float, rate: float, waited: float, seconds: float
    ) -> None:
        teraflops = self._step_flops / seconds / 1e12
        report = StepReport(
            step=self.state.step,
            epoch=(self.state.step - 1) // self.schedule.steps_per_epoch + 1,
            steps_per_epoch=self.schedule.steps_per_epoch,
            total_steps=self.schedule.total_steps,
            terms=terms,
            learning_rate=rate,
            gradient_norm=norm,
            images_per_second=self.settings.global_batch / seconds,
            seconds={"data": waited, **self._watch.take(), "step": seconds},
            memory_bytes=_memory(self.ranks.device),
            teraflops=teraflops,
            flop_share=teraflops / self._peak if self._peak else None,
        )
        for callback in self.callbacks:
            callback.on_step(report)

    def _end_epoch(self) -> None:
        terms = self.state.take_terms()
        last = self.state.step == self.schedule.total_steps
        report = self._evaluate(terms) if last or self.epoch % self.settings.evaluate_every == 0 else None
        metrics = flat_metrics(self.epoch, self.state.step, terms, self.evaluator.classes, report)
        self.state.history.append(metrics)
        if report is not None and report.best:
            self.state.best_scores = metrics
        best = report is not None and report.best
        if last or best or self.epoch % self.settings.checkpoint_every_epochs == 0:
            self._save(report)
        for callback in self.callbacks:
            callback.on_epoch(metrics)

    def _evaluate(self, terms: dict[str, float]) -> EvaluationReport:
        self.network.eval()
        start = time.perf_counter()
        with self.averaged.applied(self.network) if self.averaged else contextlib.nullcontext():
            confusion, scores = self.evaluator(self.network)
            best = self.state.best_score is None or scores.miou > self.state.best_score
            if best:
                self.state.best_score, self.state.best_epoch = scores.miou, self.epoch
                self.state.best_step = self.state.step
            report = EvaluationReport(
                step=self.state.step,
                epoch=self.epoch,
                split=self.evaluator.split,
                confusion=confusion,
                scores=scores,
                terms=terms,
                best=best,
                seconds=time.perf_counter() - start,
            )
            for callback in self.callbacks:
                callback.on_evaluation(report, self.network)
        return report

    def _checkpoint_in_epoch(self) -> None:
        if self.checkpointer and self.ranks.first:
            self._tell_checkpoint(self.checkpointer.finished())
        every = self.settings.checkpoint_every_steps
        if every and self.state.step % every == 0 and self.state.step % self.schedule.steps_per_epoch:
            self._save()

    def _save(self, report: EvaluationReport | None = None) -> None:
        if not self.checkpointer or not self.ranks.first:
            return
        best = report is not None and report.best
        before = self.checkpointer.save(self.state, self.network, self.optimizer, self.averaged, best=best)
        self._tell_checkpoint(before)
        self._saving = report

    def _tell_checkpoint(self, found: Found | None) -> None:
        if found is not None:
            for callback in self.callbacks:
                callback.on_checkpoint(found.uri, self._saving)


def _wrap(network: nn.Module, ranks: Ranks) -> nn.Module:
    if ranks.world_size == 1:
        return network
    normalize_over_ranks(network)
    devices = [ranks.device.index] if ranks.device.type == "cuda" else None
    names = inspect.signature(DistributedDataParallel).parameters
    # No buffer needs an exchange: all are equal at the start, and batch norm is computed over ranks.
    exchange: dict[str, Any] = {
        "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False
    }
    return DistributedDataParallel(network, device_ids=devices, gradient_as_bucket_view=True, **exchange)


def _floats(values: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Brings scalars to the host in one transfer."""
    stacked = torch.stack([value.detach().to(torch.float64) for value in values.values()])
    return dict(zip(values, stacked.tolist(), strict=True))


def _set_precision(precision: Precision) -> None:
    """Allows TensorFloat-32 in matrix products and convolutions, or forbids it."""
    torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
    torch.backends.cudnn.allow_tf32 = precision != "fp32"


def _memory(device: torch.device) -> int:
    """Peak memory in bytes: of the device, or resident on the host."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

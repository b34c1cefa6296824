"""The training loop: from built objects to a trained network. Knows no Ray, no MLflow and no recipe file.

Runs in one process or in every process of a `torch.distributed` group alike.

A step never waits for the device. Whether its loss and gradients are finite is decided there, and the optimizer leaves
the step out there; the host reads the values before the next optimizer step, when the device has more work queued, or
at once where calls return only when they are done.
"""

import contextlib
import inspect
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from d2ls.errors import NonFiniteLossError
from d2ls.loader import Batch
from d2ls.training.accumulation import GradientAccumulator, MicrobatchPlan
from d2ls.training.batch_norm import RunningStatistics
from d2ls.training.callbacks import Callback, EvaluationReport, StepReport, flat_metrics
from d2ls.training.checkpoint import Checkpointer
from d2ls.training.checkpoint_files import CheckpointRef
from d2ls.training.device import Device, Precision, Stopwatch, open_device
from d2ls.training.ema import ExponentialMovingAverage
from d2ls.training.evaluator import Evaluator
from d2ls.training.flops import peak_tflops, training_flops
from d2ls.training.optimizer import GuardedAdamW
from d2ls.training.probe_memory import fitting_micro_batch, probe_memory
from d2ls.training.process_group import ProcessGroup
from d2ls.training.schedule import Schedule
from d2ls.training.train_state import TrainingState, seed_everything

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainerSettings:
    """Plain settings of the loop.

    Attributes:
        global_batch: samples an optimizer step sees over all ranks.
        seed: random numbers of a step (stochastic depth) depend on (seed, step, rank) alone.
        micro_batch: most samples a rank takes at once; None: its whole share.
        clip_norm: largest gradient norm; None: not clipped.
        precision: fp32, tf32 or bf16 (autocast).
        compile: compile the network with torch.compile.
        channels_last: memory layout of the weights; convolutions pass it on to the maps.
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


@dataclass(frozen=True)
class _Step:
    """A step whose values the host has not read yet.

    Attributes:
        number: optimizer steps done with it.
        names: of the values: the loss terms and `gradient_norm`.
        read: waits for the values, and whether the step was left out (1 or 0), and returns them.
        keys: samples of this rank.
        rate: learning rate.
        waited: seconds spent waiting for the loader.
        seconds: of the whole step on the host.
        watch: times of its parts.
    """

    number: int
    names: tuple[str, ...]
    read: Callable[[], list[float]]
    keys: tuple[str, ...]
    rate: float
    waited: float
    seconds: float
    watch: Stopwatch


@dataclass
class Trainer:
    """Trains a network.

    Attributes:
        network: on the ranks' device; takes raw pixels.
        loss: takes (output, labels), returns `.terms` and `.total`, equal on all ranks.
        optimizer: over the network's parameters.
        schedule: learning rate by step; also says how many steps and epochs there are.
        batches: makes this rank's batches of an epoch (counted from 0) from a step of it on.
        evaluator: scores the network on the selection split.
        settings: plain settings.
        group: the ranks of the run.
        callbacks: told what happens, in this order, on every rank.
        checkpointer: None: nothing is written.
        ema: averaged weights, where they are used.
        state: progress so far.
        device: where to compute; None: the ranks' device.
    """

    network: nn.Module
    loss: nn.Module
    optimizer: GuardedAdamW
    schedule: Schedule
    batches: Callable[[int, int], Iterable[Batch]]
    evaluator: Evaluator
    settings: TrainerSettings
    group: ProcessGroup = field(default_factory=ProcessGroup)
    callbacks: Sequence[Callback] = ()
    checkpointer: Checkpointer | None = None
    ema: ExponentialMovingAverage | None = None
    state: TrainingState = field(default_factory=TrainingState)
    device: Device | None = None

    def __post_init__(self) -> None:
        self._device = self.device or open_device(self.group.device)
        self._unread: _Step | None = None

    def run(self) -> TrainingState:
        """Trains to the last epoch, from the newest complete checkpoint where there is one.

        Raises:
            NonFiniteLossError: on every rank, before the step.
            CheckpointError: a checkpoint cannot be written or read.
        """
        for _ in self.epochs():
            pass
        return self.state

    def epochs(self) -> Iterator[dict[str, float]]:
        """Trains as `run` does, and yields the flat metrics of each epoch when it ends.

        Closing the iterator stops the training after that epoch; its checkpoints are then complete.
        """
        try:
            self._prepare()
            for callback in self.callbacks:
                callback.on_start(self.state.history)
            while self.state.step < self.schedule.total_steps:
                self._train_epoch()
                yield self._end_epoch()
            if self.checkpointer and self.group.is_main:
                self._tell_checkpoint(self.checkpointer.finished(wait=True))
        except GeneratorExit:  # stopped by the caller, which is no error
            self._close()
            raise
        except BaseException:
            self._close(failed=True)
            raise
        self._close()

    def _close(self, *, failed: bool = False) -> None:
        """Closes everything, whatever one of them raises; the first error of the run is the one that is raised."""
        first: Exception | None = None
        writer = [self.checkpointer.close] if self.checkpointer else []
        for close in (*(callback.close for callback in self.callbacks), *writer):
            try:
                close()
            except Exception as error:
                if failed or first:
                    _log.exception("%s failed too", close.__qualname__)
                first = first or error
        if first and not failed:
            raise first

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return self.state.step // self.schedule.steps_per_epoch

    def _prepare(self) -> None:
        if self.settings.channels_last:
            self.network.to(memory_format=torch.channels_last)
        if self.checkpointer:
            self.group.run_together(self._clear_orphans)
            restored = self.checkpointer.restore(self.network, self.optimizer, self.ema)
            if restored is not None:
                self.state = restored
                _log.info("going on after step %d", restored.step)
        self._device.set_precision(self.settings.precision)
        self._step_flops = self.group.run_together(self._count_flops)
        self._peak = peak_tflops(self._device.name, self.settings.precision)
        if self.settings.compile:
            self.network.compile()
        micro = MicrobatchPlan.plan(self.settings.global_batch, self.group.world_size, self._micro_batch())
        if micro.describe():
            _log.info(micro.describe())
        self._gradients = GradientAccumulator(
            self.network,
            _wrap(self.network, self.group, self._device),
            self.loss,
            micro,
            self.group,
            self._device,
            self.settings.precision,
        )
        self._parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self._statistics = RunningStatistics(self.network)
        self._saving: EvaluationReport | None = None

    def _clear_orphans(self) -> None:
        if self.checkpointer and self.group.is_main:
            self.checkpointer.clear_orphans()

    def _count_flops(self) -> float:
        """Model FLOPs of a step on one device, counted by rank 0; 0 where the size of the crops is not known."""
        if self.settings.sample_shape is None or not self.group.is_main:
            return 0.0
        images = self.settings.global_batch / self.group.world_size
        return images * training_flops(self.network, self.settings.sample_shape)

    def _micro_batch(self) -> int | None:
        """The micro-batch asked for, or the largest that fits where a GPU is too small for it."""
        settings = self.settings
        if settings.sample_shape is None:
            return settings.micro_batch
        cut = MicrobatchPlan.plan(settings.global_batch, self.group.world_size, settings.micro_batch)
        wanted = max(map(max, cut.parts))
        attempt = probe_memory(
            self.network,
            self.optimizer,
            settings.sample_shape,
            self._device,
            settings.precision,
        )
        found = fitting_micro_batch(wanted, attempt, self._device, self.group)
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
        seed_everything(self.settings.seed, self.state.step, self.group.rank)
        rate = self.schedule.apply(self.optimizer, self.state.step)
        watch = Stopwatch(self._device)
        self._statistics.keep()
        terms = self._gradients(batch, watch)
        self._read_step()
        with watch.part("optimizer"):
            norm = torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
            values = torch.stack([value.detach().double() for value in (*terms.values(), norm)])
            spoiled = self._spoiled(values)
            self._update(norm, spoiled)
        self.optimizer.zero_grad()
        self.state.step += 1
        self._unread = _Step(
            number=self.state.step,
            names=(*terms, "gradient_norm"),
            read=self._device.reading(torch.cat([values, spoiled.double().view(1)])),
            keys=batch.keys,
            rate=rate,
            waited=waited,
            seconds=time.perf_counter() - start,
            watch=watch,
        )
        if not self._device.runs_ahead:
            self._read_step()
        self._checkpoint_in_epoch()

    def _spoiled(self, values: Tensor) -> Tensor:
        """Returns 1 where a value is not finite on any rank, else 0, float32 on the device."""
        own = (~values.isfinite()).any().float()
        return self.group.all_reduce_sum(own).clamp(max=1.0)

    def _update(self, norm: Tensor, spoiled: Tensor) -> None:
        """Makes the step on the device, or leaves everything as it was where it is spoiled."""
        if self.settings.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self.settings.clip_norm, norm)
        self.optimizer.found_inf = spoiled
        self.optimizer.step()
        self._statistics.take_back(spoiled)
        if self.ema:
            self.ema.update(self.network, spoiled)

    def _read_step(self) -> None:
        """Reads the values of the step before, and reports it, or skips it where they are not finite."""
        step, self._unread = self._unread, None
        if step is None:
            return
        *numbers, spoiled = step.read()
        values = dict(zip(step.names, numbers, strict=True))
        if spoiled == 0:
            norm = values.pop("gradient_norm")
            self.state.add_terms(values)
            self._report_step(step, values, norm)
        else:
            self.optimizer.forget_step()
            if self.ema:
                self.ema.forget_step()
            self._skip(step, values)

    def _skip(self, step: _Step, values: dict[str, float]) -> None:
        """Counts a step whose loss or gradient is not finite, or stops the run on every rank."""
        self.state.skipped += 1
        told = self.group.all_gather((step.keys, values))
        keys = [key for share, _ in told for key in share]
        values = next((each for _, each in told if not all(map(math.isfinite, each.values()))), values)
        facts = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        message = f"step {step.number}: loss or gradient is not finite ({facts}); samples {', '.join(keys)}"
        if self.state.skipped > self.settings.skip_non_finite:
            raise NonFiniteLossError(
                f"{message}. Stopped before the optimizer step"
                + (f"; {self.state.skipped - 1} were skipped before" if self.state.skipped > 1 else "")
                + ". Lower train.optimizer.lr, look at these samples, use precision fp32, or set train.non_finite=skip"
            )
        _log.warning("%s. Skipped, %d of %d", message, self.state.skipped, self.settings.skip_non_finite)

    def _report_step(self, step: _Step, terms: dict[str, float], norm: float) -> None:
        model_tflops = self._step_flops / step.seconds / 1e12
        report = StepReport(
            step=step.number,
            epoch=(step.number - 1) // self.schedule.steps_per_epoch + 1,
            steps_per_epoch=self.schedule.steps_per_epoch,
            total_steps=self.schedule.total_steps,
            terms=terms,
            learning_rate=step.rate,
            gradient_norm=norm,
            images_per_second=self.settings.global_batch / step.seconds,
            seconds={"data": step.waited, **step.watch.seconds(), "step": step.seconds},
            memory_bytes=self._device.peak_memory(),
            model_tflops=model_tflops,
            mfu=model_tflops / self._peak if self._peak else None,
        )
        for callback in self.callbacks:
            callback.on_step(report)

    def _end_epoch(self) -> dict[str, float]:
        self._read_step()
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
        return dict(metrics)

    def _evaluate(self, terms: dict[str, float]) -> EvaluationReport:
        self.network.eval()
        start = time.perf_counter()
        with self.ema.applied(self.network) if self.ema else contextlib.nullcontext():
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
        if self.checkpointer and self.group.is_main:
            self._tell_checkpoint(self.checkpointer.finished())
        every = self.settings.checkpoint_every_steps
        if every and self.state.step % every == 0 and self.state.step % self.schedule.steps_per_epoch:
            self._read_step()
            self._save()

    def _save(self, report: EvaluationReport | None = None) -> None:
        if not self.checkpointer or not self.group.is_main:
            return
        best = report is not None and report.best
        before = self.checkpointer.save(self.state, self.network, self.optimizer, self.ema, best=best)
        self._tell_checkpoint(before)
        self._saving = report

    def _tell_checkpoint(self, found: CheckpointRef | None) -> None:
        if found is not None:
            for callback in self.callbacks:
                callback.on_checkpoint(found.uri, self._saving)


def _wrap(network: nn.Module, group: ProcessGroup, device: Device) -> nn.Module:
    if group.world_size == 1:
        return network
    network = device.normalize_over_ranks(network)
    names = inspect.signature(DistributedDataParallel).parameters
    # No buffer needs an exchange: all are equal at the start, and batch norm is computed over ranks.
    exchange: dict[str, Any] = {
        "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False
    }
    return DistributedDataParallel(
        network, device_ids=device.ddp_ids, gradient_as_bucket_view=True, **exchange
    )

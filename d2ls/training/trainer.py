"""Training, from built objects to a trained network; knows no Ray, no MLflow and no recipe.

`Trainer.epochs` is the whole training: it prepares, then runs the steps of each epoch, its evaluation and its
checkpoint. Every rank of a `torch.distributed` group runs the same code; a single process is a group of one.

A step never waits for the device. The device itself checks whether the values are finite (see `WeightUpdate`). The
host reads the values of a step just before the next weight update, when the device has more work queued. On devices
whose calls return only when they are done, it reads them at once.
"""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from d2ls.data import Batch
from d2ls.errors import NonFiniteLossError
from d2ls.losses import D2LSLoss
from d2ls.training.accumulation import GradientAccumulator, MicrobatchPlan
from d2ls.training.callbacks import Callback, EvaluationReport, StepReport, close_all, flat_metrics
from d2ls.training.checkpoint import Checkpointer, Completed
from d2ls.training.device import Device, Precision, Stopwatch, open_device
from d2ls.training.early_stopping import evaluations_since_best, is_over
from d2ls.training.ema import ExponentialMovingAverage
from d2ls.training.evaluator import Evaluator
from d2ls.training.flops import FlopMeter
from d2ls.training.optimizer import GuardedAdamW
from d2ls.training.probe_memory import fitting_micro_batch_size, probe_memory
from d2ls.training.process_group import ProcessGroup
from d2ls.training.schedule import Schedule
from d2ls.training.train_state import TrainingState, seed_everything
from d2ls.training.update import WeightUpdate

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainerSettings:
    """Plain settings of the trainer.

    Attributes:
        global_batch_size: samples an optimizer step sees over all ranks.
        seed: random numbers of a step (stochastic depth) depend on (seed, step, rank) alone.
        micro_batch_size: most samples a rank takes at once; None: its whole share.
        clip_norm: largest gradient norm; None: not clipped.
        precision: fp32, tf32 or bf16 (autocast).
        compile: compile the network with torch.compile.
        channels_last: memory layout of the weights; convolutions pass it on to the maps.
        skip_non_finite: steps with a non-finite loss that may be skipped; 0 stops at the first.
        evaluate_every: epochs between evaluations; the end of the training is always evaluated.
        patience: evaluations without a higher mIoU after which the training ends; None: it never ends early.
        min_delta: a higher mIoU counts if it is higher by more than this.
        time_budget: seconds, over all sessions of the run, after which the training ends with the running step; None:
            no limit.
        checkpoint_every_epochs: epochs between checkpoints; last and best are always written.
        checkpoint_every_steps: also every so many steps.
        sample_shape: C H W of the training crop. If it is known, the FLOPs of a step are counted, and a micro-batch
            too large for the memory of a GPU is reduced before the first step.
    """

    global_batch_size: int
    seed: int = 0
    micro_batch_size: int | None = None
    clip_norm: float | None = 1.0
    precision: Precision = "fp32"
    compile: bool = False
    channels_last: bool = False
    skip_non_finite: int = 0
    evaluate_every: int = 1
    patience: int | None = None
    min_delta: float = 0.0
    time_budget: float | None = None
    checkpoint_every_epochs: int = 1
    checkpoint_every_steps: int | None = None
    sample_shape: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class _PendingStep:
    """A step whose values the host has not read yet.

    Attributes:
        number: optimizer steps done with it.
        names: of the values: the loss terms and `gradient_norm`.
        read: waits for the values and the two flags of `WeightUpdate.apply`, and returns them.
        keys: samples of this rank.
        learning_rate: of the first parameter group.
        data_seconds: time spent waiting for the loader.
        seconds: time of the whole step on the host.
        watch: times of its parts.
    """

    number: int
    names: tuple[str, ...]
    read: Callable[[], list[float]]
    keys: tuple[str, ...]
    learning_rate: float
    data_seconds: float
    seconds: float
    watch: Stopwatch


@dataclass
class Trainer:
    """Trains a network.

    Attributes:
        network: on the group's device; takes raw pixels.
        loss: of (output, labels): terms and total, equal on all ranks.
        optimizer: over the network's parameters.
        schedule: learning rate by step, and how many steps and epochs there are.
        batches: makes this rank's batches of an epoch (counted from 0), from a step of it on.
        evaluator: scores the network on the validation split.
        settings: plain settings.
        group: the ranks of the run.
        callbacks: called in this order, on every rank.
        checkpointer: None: nothing is written.
        ema: averaged weights, where they are used.
        state: progress so far.
        device: where to compute; None: the group's device.
    """

    network: nn.Module
    loss: D2LSLoss
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

    def run(self) -> TrainingState:
        """Trains to the end, from the newest complete checkpoint where there is one.

        Returns:
            The final state.

        Raises:
            NonFiniteLossError: on every rank, before the step.
            CheckpointError: a checkpoint cannot be written or read.
            StorageError: the object store does not answer.
        """
        for _ in self.epochs():
            pass
        return self.state

    def epochs(self) -> Iterator[dict[str, float]]:
        """Trains as `run` does, and yields the flat metrics of each epoch when it ends.

        Closing the iterator stops the training after that epoch; its checkpoints are then complete.
        """
        self._started, self._time_is_up = time.perf_counter(), False
        try:
            self._prepare()
            for callback in self.callbacks:
                callback.on_start(self.state.history)
            while self.state.step < self.schedule.total_steps and not self.state.ended_early:
                self._train_epoch()
                yield self._end_epoch()
            if self.checkpointer:
                self._report_checkpoint(self.checkpointer.completed(wait=True))
            for callback in self.callbacks:
                callback.on_end(self.state)
        except GeneratorExit:  # stopped by the caller, which is no error
            self._close()
            raise
        except BaseException:
            self._close(failed=True)
            raise
        self._close()

    @property
    def epoch(self) -> int:
        """Epochs begun; the last one may end before its last step."""
        return -(-self.state.step // self.schedule.steps_per_epoch)

    def _prepare(self) -> None:
        """Resumes, and builds what a step needs. The order counts: each part takes the network as the last left it."""
        settings = self.settings
        self._device = self.device or open_device(self.group.device)
        self._device.set_precision(settings.precision)
        self._pending: _PendingStep | None = None
        if settings.channels_last:
            self.network.to(memory_format=torch.channels_last)
        self._resume()
        self._flops = self.group.run_together(self._count_flops)
        if settings.compile:
            self.network.compile()
        plan = self._plan_micro_batches()
        self._gradients = GradientAccumulator(
            self.network, self.loss, plan, self.group, self._device, settings.precision
        )
        self._update = WeightUpdate(
            self.network, self.optimizer, self.group, clip_norm=settings.clip_norm, ema=self.ema
        )

    def _resume(self) -> None:
        if self.checkpointer:
            restored = self.checkpointer.restore(self.network, self.optimizer, self.ema)
            if restored is not None:
                self.state = restored
                self._started -= restored.seconds
                if restored.ended_early and not self._is_over(restored):
                    restored.ended_early = ""
                _log.info(
                    "%s after step %d", "ended early" if restored.ended_early else "going on", restored.step
                )

    def _is_over(self, state: TrainingState) -> bool:
        """Returns whether a training that ended early has ended by the settings of this session too."""
        return is_over(
            state.history,
            state.seconds,
            patience=self.settings.patience,
            min_delta=self.settings.min_delta,
            time_budget=self.settings.time_budget,
        )

    def _count_flops(self) -> FlopMeter:
        """Rank 0 alone counts: its callbacks report the rates."""
        settings = self.settings
        if not self.group.is_main:
            return FlopMeter()
        images = settings.global_batch_size / self.group.world_size
        return FlopMeter.of(
            self.network, settings.sample_shape, images, self._device.name, settings.precision
        )

    def _plan_micro_batches(self) -> MicrobatchPlan:
        """Cuts the global batch as in the settings, or into smaller parts that fit into the memory of a GPU."""
        settings, world_size = self.settings, self.group.world_size
        plan = MicrobatchPlan.create(settings.global_batch_size, world_size, settings.micro_batch_size)
        if settings.sample_shape is not None:
            attempt = probe_memory(
                self.network,
                self.loss,
                self.optimizer,
                settings.sample_shape,
                self._device,
                settings.precision,
            )
            fitting = fitting_micro_batch_size(plan.largest, attempt, self._device, self.group)
            if fitting < plan.largest:
                plan = MicrobatchPlan.create(settings.global_batch_size, world_size, fitting)
        if plan.describe():
            _log.info(plan.describe())
        return plan

    def _train_epoch(self) -> None:
        self.network.train()
        steps, total = self.schedule.steps_per_epoch, self.schedule.total_steps
        epoch, done = divmod(self.state.step, steps)
        batches = iter(self.batches(epoch, done))
        for _ in range(done, min(steps, total - epoch * steps)):
            start = time.perf_counter()
            batch = next(batches)
            self._train_step(batch, start)
            if self._time_is_up:
                break
            self._checkpoint_in_epoch()

    def _train_step(self, batch: Batch, start: float) -> None:
        data_seconds = time.perf_counter() - start
        seed_everything(self.settings.seed, self.state.step, self.group.rank)
        learning_rate = self.schedule.apply(self.optimizer, self.state.step)
        watch = Stopwatch(self._device)
        self._update.before_forward()
        terms = self._gradients(batch, watch)
        self._read_pending_step()
        with watch.part("optimizer"):
            values = self._update.apply(terms, stop=self.group.is_main and self._budget_is_used())
        self.state.step += 1
        self._pending = _PendingStep(
            number=self.state.step,
            names=(*terms, "gradient_norm"),
            read=self._device.reading(values),
            keys=batch.keys,
            learning_rate=learning_rate,
            data_seconds=data_seconds,
            seconds=time.perf_counter() - start,
            watch=watch,
        )
        if not self._device.runs_ahead:
            self._read_pending_step()

    def _read_pending_step(self) -> None:
        """Reads the values of the last step, and reports it, or counts it as skipped where they are not finite."""
        step, self._pending = self._pending, None
        if step is None:
            return
        *numbers, left_out, stop = step.read()
        self._time_is_up = self._time_is_up or bool(stop)
        values = dict(zip(step.names, numbers, strict=True))
        if left_out:
            self._update.uncount()
            self._skip_step(step, values)
        else:
            gradient_norm = values.pop("gradient_norm")
            self.state.add_terms(values)
            self._report_step(step, values, gradient_norm)

    def _skip_step(self, step: _PendingStep, values: dict[str, float]) -> None:
        """Counts a step whose loss or gradient is not finite, or stops the run, on every rank."""
        self.state.skipped += 1
        shares = self.group.all_gather((step.keys, values))
        keys = [key for share_keys, _ in shares for key in share_keys]
        of_ranks = [share_values for _, share_values in shares]
        values = next((v for v in of_ranks if not all(map(math.isfinite, v.values()))), values)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        message = f"step {step.number}: loss or gradient is not finite ({shown}); samples {', '.join(keys)}"
        if self.state.skipped > self.settings.skip_non_finite:
            raise NonFiniteLossError(
                f"{message}. Stopped before the optimizer step"
                + (f"; {self.state.skipped - 1} were skipped before" if self.state.skipped > 1 else "")
                + ". Lower train.optimizer.lr, look at these samples, use precision fp32, or set train.non_finite=skip"
            )
        _log.warning("%s. Skipped, %d of %d", message, self.state.skipped, self.settings.skip_non_finite)

    def _report_step(self, step: _PendingStep, terms: dict[str, float], gradient_norm: float) -> None:
        model_tflops, mfu = self._flops.rates(step.seconds)
        report = StepReport(
            step=step.number,
            epoch=(step.number - 1) // self.schedule.steps_per_epoch + 1,
            steps_per_epoch=self.schedule.steps_per_epoch,
            total_steps=self.schedule.total_steps,
            terms=terms,
            learning_rate=step.learning_rate,
            gradient_norm=gradient_norm,
            images_per_second=self.settings.global_batch_size / step.seconds,
            seconds={"data": step.data_seconds, **step.watch.seconds(), "step": step.seconds},
            memory_bytes=self._device.peak_memory(),
            model_tflops=model_tflops,
            mfu=mfu,
            seconds_spent=self._seconds_spent(),
            time_budget=self.settings.time_budget,
        )
        for callback in self.callbacks:
            callback.on_step(report)

    def _end_epoch(self) -> dict[str, float]:
        """Evaluates, saves and reports an epoch that has ended; returns its flat metrics."""
        self._read_pending_step()
        terms = self.state.mean_terms()
        complete = self.state.step == self.schedule.total_steps
        if complete or self.state.step % self.schedule.steps_per_epoch == 0:
            self.state.clear_terms()
        due = complete or self._time_is_up or self.epoch % self.settings.evaluate_every == 0
        report = self._evaluate(terms) if due else None
        best = report is not None and report.best
        metrics = flat_metrics(self.epoch, self.state.step, terms, self.evaluator.classes, report)
        # An epoch that a time budget ended, and a later session completed, has one row.
        self.state.history = [row for row in self.state.history if row["epoch"] < self.epoch] + [metrics]
        if best:
            self.state.best_scores = metrics
        if (
            complete
            or self.state.ended_early
            or best
            or self.epoch % self.settings.checkpoint_every_epochs == 0
        ):
            self._save(report)
        for callback in self.callbacks:
            callback.on_epoch(metrics)
        return dict(metrics)

    def _evaluate(self, terms: dict[str, float]) -> EvaluationReport:
        self.network.eval()
        start = time.perf_counter()
        with self.ema.applied(self.network) if self.ema else contextlib.nullcontext():
            confusion, scores = self.evaluator(self.network)
            before = self.state.best_score
            # No score is a number where no scored class is in the labels or the predictions.
            best = (
                before is None or scores.miou > before or (math.isnan(before) and not math.isnan(scores.miou))
            )
            if best:
                self.state.best_score, self.state.best_epoch = scores.miou, self.epoch
                self.state.best_step = self.state.step
            complete = self.state.step == self.schedule.total_steps
            if not complete and (reason := self._reason_to_end(scores.miou)):
                self.state.ended_early = reason
                _log.info("the training ends early: %s", reason)
            report = EvaluationReport(
                step=self.state.step,
                epoch=self.epoch,
                split=self.evaluator.split,
                confusion=confusion,
                scores=scores,
                terms=terms,
                best=best,
                last=complete or bool(self.state.ended_early),
                seconds=time.perf_counter() - start,
            )
            for callback in self.callbacks:
                callback.on_evaluation(report, self.network)
        return report

    def _reason_to_end(self, miou: float) -> str:
        """Returns why the training ends with an evaluation, the same on every rank; empty if it goes on."""
        settings, state = self.settings, self.state
        if settings.time_budget is not None:
            self._time_is_up = self._time_is_up or self.group.broadcast(self._budget_is_used())
            if self._time_is_up:
                return (
                    f"the time budget of {settings.time_budget / 60:g} min (train.time_budget) is used up after step "
                    f"{state.step} of {self.schedule.total_steps}"
                )
        scores = [row["val/miou"] for row in state.history if "val/miou" in row]
        scores += [miou] if math.isfinite(miou) else []  # as in the history
        since = evaluations_since_best(scores, settings.min_delta)
        if settings.patience and since >= settings.patience:
            more = f" by more than {settings.min_delta:g}" if settings.min_delta else ""
            return (
                f"val mIoU has not risen{more} in {since} evaluation(s) (train.patience); the best is "
                f"{state.best_score:.4f}, of epoch {state.best_epoch}"
            )
        return ""

    def _budget_is_used(self) -> bool:
        budget = self.settings.time_budget
        return budget is not None and self._seconds_spent() >= budget

    def _seconds_spent(self) -> float:
        return time.perf_counter() - self._started

    def _checkpoint_in_epoch(self) -> None:
        if self.checkpointer:
            self._report_checkpoint(self.checkpointer.completed())
        every, step = self.settings.checkpoint_every_steps, self.state.step
        ends = step % self.schedule.steps_per_epoch == 0 or step == self.schedule.total_steps
        if every and step % every == 0 and not ends:
            self._read_pending_step()
            self._save()

    def _save(self, report: EvaluationReport | None = None) -> None:
        self.state.seconds = self._seconds_spent()
        if self.checkpointer:
            previous = self.checkpointer.save(self.state, self.network, self.optimizer, self.ema, report)
            self._report_checkpoint(previous)

    def _report_checkpoint(self, completed: Completed | None) -> None:
        if completed is not None:
            ref, report = completed
            for callback in self.callbacks:
                callback.on_checkpoint(ref.uri, report)

    def _close(self, *, failed: bool = False) -> None:
        writer = [self.checkpointer.close] if self.checkpointer else []
        close_all([*(callback.close for callback in self.callbacks), *writer], failed=failed)

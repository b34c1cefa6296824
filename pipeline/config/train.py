"""Recipe sections `train` and `cluster`."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import Section


class OptimizerConfig(Section):
    """AdamW, optionally inside Lookahead."""

    lr: Annotated[float, Field(gt=0, le=1)] = 1e-4
    """Highest learning rate, reached after the warm-up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay, on every parameter."""
    backbone_lr_factor: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Learning rate of the backbone, as a share of `lr`."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor from one backbone layer to the next shallower one; 1 is off."""
    lookahead: bool = False
    """Wrap AdamW in Lookahead (5 steps, alpha 0.5), as in the published settings."""


class ScheduleConfig(Section):
    """Learning rate, set at every step."""

    name: Literal["cosine", "polynomial", "constant"] = "cosine"
    """Shape of the decay after the warm-up."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Linear warm-up, as a share of all steps."""
    final_lr: Annotated[float, Field(ge=0)] = 1e-6
    """Learning rate at which the decay ends; without effect with `constant`."""
    per: Literal["step", "epoch"] = "step"
    """`epoch` holds the rate during an epoch, as the published code does."""


class CheckpointConfig(Section):
    """When to write checkpoints and which to keep; last and best are always kept."""

    every_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps between checkpoints within an epoch; unset: checkpoints only at the ends of epochs."""
    every_epochs: Annotated[int, Field(ge=1)] = 1
    """Epochs between checkpoints at epoch ends."""


_DURATION = re.compile(r"(?:([\d.]+)\s*h)?\s*(?:([\d.]+)\s*m(?:in)?)?\s*(?:([\d.]+)\s*s)?")


def _seconds(duration: float | str) -> float:
    """Returns a duration in seconds; 0 for a text that is none."""
    if not isinstance(duration, str):
        return 60.0 * duration
    match = _DURATION.fullmatch(duration.strip())
    try:
        parts = [float(part or 0) for part in match.groups()] if match else [0.0]
    except ValueError:  # 1.2.3h
        return 0.0
    return sum(part * unit for part, unit in zip(parts, (3600.0, 60.0, 1.0), strict=False))


class TrainConfig(Section):
    """The training loop."""

    epochs: Annotated[int, Field(ge=1)] | None = 30
    """Passes over the training split; null with `steps`."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """In place of `epochs`: length of the training in optimizer steps; the last epoch may be partial."""
    global_batch_size: Annotated[int, Field(ge=1)] = 8
    """Samples of an optimizer step over all workers; the same for any number of workers."""
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Largest number of samples in a forward pass of a worker; the gradients of its share are accumulated. Unset: the
    whole share at once."""
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest norm of the gradient; null turns clipping off."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Moving average of the weights, evaluated and kept in place of the raw ones."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """`bf16`: forward pass under autocast; `tf32`: TF32 products on CUDA. Weights and loss stay float32."""
    compile: bool = False
    """Compile the network with `torch.compile`."""
    channels_last: bool = False
    """Keep weights and maps in PyTorch's `channels_last` memory format."""
    non_finite: Literal["stop", "skip"] = "stop"
    """A loss that is not finite: stop before the step, or skip it."""
    non_finite_limit: Annotated[int, Field(ge=0)] = 10
    """With `skip`: largest number of steps that a run may skip."""
    evaluate_every: Annotated[int, Field(ge=1)] = 1
    """Epochs between evaluations on the val split; there is always one at the end of the training."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Early stopping: end after this number of evaluations without a higher mIoU on the val split; unset: never. The
    learning rate follows the full length."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """With `patience`: a higher mIoU counts only if the rise is more than this."""
    time_budget: float | str | None = None
    """End the training after this time, at the end of a step: `30m`, `2h`, `1h30m`; a number is minutes. The time of
    all sessions of a run counts. The learning rate follows the full length."""
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="before")
    @classmethod
    def _steps_replace_the_default(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("steps") is not None and "epochs" not in values:
            return {**values, "epochs": None}
        return values

    @field_validator("time_budget")
    @classmethod
    def _time_budget_is_a_duration(cls, value: float | str | None) -> float | str | None:
        if value is not None and not _seconds(value) > 0:
            raise ValueError("write a duration above 0, such as 30m, 2h or 1h30m; a number is minutes")
        return value

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            given = "neither" if self.epochs is None else "both"
            raise ValueError(
                f"give one of epochs and steps, {given} given; null takes one back, e.g. train.epochs=null"
            )
        return self

    @property
    def time_budget_seconds(self) -> float | None:
        """The time budget in seconds; None without one."""
        return None if self.time_budget is None else _seconds(self.time_budget)

    @property
    def length(self) -> str:
        """The length of the training as people read it: `30 epochs`, `5000 steps`."""
        number, unit = (self.steps, "step") if self.epochs is None else (self.epochs, "epoch")
        return f"{number} {unit}" if number == 1 else f"{number} {unit}s"


class ClusterConfig(Section):
    """Ray workers of a run."""

    address: str | None = None
    """Ray cluster to join; unset: RAY_ADDRESS, else a local one is started. `local` always starts one."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Training processes; unset: 1."""
    min_workers: Annotated[int, Field(ge=1)] | None = None
    """In place of `workers`, with `max_workers`: smallest number of workers with which training continues after a node
    is lost."""
    max_workers: Annotated[int, Field(ge=1)] | None = None
    """In place of `workers`, with `min_workers`: largest number of workers, if the cluster has room for them."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    """CPUs that Ray reserves for a training process."""
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None
    """GPUs that Ray reserves for a training process; unset: 1 if the cluster has GPUs, else 0."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Number of times that a failed worker group is started again from the newest checkpoint."""

    @field_validator("workers", mode="before")
    @classmethod
    def _workers_are_a_number(cls, value: object) -> object:
        if isinstance(value, str):
            raise ValueError("workers is a number; for a range give min_workers and max_workers")
        return value

    @model_validator(mode="after")
    def _workers_are_a_number_or_a_range(self) -> Self:
        if (self.min_workers is None) != (self.max_workers is None):
            raise ValueError("give min_workers and max_workers together, or neither of them")
        if self.workers is not None and self.min_workers is not None:
            raise ValueError(
                "give workers, or min_workers and max_workers; null takes one back, e.g. cluster.workers=null"
            )
        low, high = self.worker_range
        if low > high:
            raise ValueError(f"min_workers {low} is more than max_workers {high}")
        return self

    def changed(self, workers: int | None, address: str | None = None) -> Self:
        """Returns a copy with another number of workers and another cluster, from the command line; None keeps them.

        Raises:
            ConfigError: not a possible number of workers.
        """
        values = self.model_dump(mode="json")
        if workers is not None:
            values |= {"workers": workers, "min_workers": None, "max_workers": None}
        if address is not None:
            values["address"] = address
        return type(self).parse(values, where="command line")

    @property
    def worker_range(self) -> tuple[int, int]:
        """Fewest and most workers."""
        number = self.workers or 1
        return self.min_workers or number, self.max_workers or number

    @property
    def workers_text(self) -> str:
        """The number of workers as people read it: `2`, or `1 to 4`."""
        low, high = self.worker_range
        return str(low) if low == high else f"{low} to {high}"


class RolesConfig(Section):
    """The split for training, the one that selects epoch and trial, and the one for the final score."""

    train: str = "train"
    """Split whose samples train the network."""
    val: str = "val"
    """Split whose scores select the epoch and the trial."""
    test: str = "test"
    """Split for the final score and for the comparison with the champion. Selects nothing."""

    @model_validator(mode="after")
    def _roles_differ(self) -> Self:
        if self.val == self.test:
            raise ValueError(
                "val and test name the same split: a score on the split that chose the model is too high"
            )
        if self.train in (self.val, self.test):
            raise ValueError("train is also used as val or test")
        return self

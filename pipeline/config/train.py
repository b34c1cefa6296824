"""Recipe sections `train` and `cluster`."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import Section


class OptimizerConfig(Section):
    """AdamW, optionally inside Lookahead."""

    lr: Annotated[float, Field(gt=0, le=1)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    backbone_lr_factor: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Learning rate of the backbone, as a share of `lr`."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor from one backbone layer to the next shallower one; 1 is off."""
    lookahead: bool = False


class ScheduleConfig(Section):
    """Learning rate, set at every step."""

    name: Literal["cosine", "polynomial", "constant"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Linear warm-up, as a share of all steps."""
    final_lr: Annotated[float, Field(ge=0)] = 1e-6
    per: Literal["step", "epoch"] = "step"
    """`epoch` holds the rate during an epoch, as the published code does."""


class CheckpointConfig(Section):
    """When to write checkpoints and which to keep; last and best are always kept."""

    every_steps: Annotated[int, Field(ge=1)] | None = None
    """Also in mid-epoch; unset: at epoch ends alone."""
    every_epochs: Annotated[int, Field(ge=1)] = 1


class TrainConfig(Section):
    """The training loop."""

    epochs: Annotated[int, Field(ge=1)] = 30
    global_batch_size: Annotated[int, Field(ge=1)] = 8
    """Samples an optimizer step sees over all workers; stays the same for any number of workers."""
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Most samples a worker takes at once; more are accumulated. Unset: the worker's whole share."""
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Moving average of the weights, evaluated and kept in place of the raw ones."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    compile: bool = False
    channels_last: bool = False
    non_finite: Literal["stop", "skip"] = "stop"
    """A loss that is not finite: stop before the step, or skip it."""
    non_finite_limit: Annotated[int, Field(ge=0)] = 10
    """With `skip`, how many steps a run may skip."""
    evaluate_every: Annotated[int, Field(ge=1)] = 1
    """Epochs between evaluations on the val split; the last epoch is always evaluated."""
    checkpoint: CheckpointConfig = CheckpointConfig()


class ClusterConfig(Section):
    """Ray workers of a run."""

    address: str | None = None
    """Ray cluster to join; unset: RAY_ADDRESS, else a local one is started. `local` always starts one."""
    workers: int | str = 1
    """Training processes: a number, or `1..4` to go on with fewer where a node is lost."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None
    """Unset: 1 where the cluster has GPUs, else 0."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """How often a failed worker group is started again from the newest checkpoint."""

    @field_validator("workers")
    @classmethod
    def _workers_is_a_number_or_range(cls, value: int | str) -> int | str:
        if isinstance(value, int):
            if value < 1:
                raise ValueError("workers must be at least 1")
            return value
        match = re.fullmatch(r"(\d+)\.\.(\d+)", value)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise ValueError("workers must be a number, or a range such as 1..4")
        return value

    @property
    def worker_range(self) -> tuple[int, int]:
        """Fewest and most workers."""
        if isinstance(self.workers, int):
            return self.workers, self.workers
        low, high = self.workers.split("..")
        return int(low), int(high)


class RolesConfig(Section):
    """Which split trains, which selects (epoch, trial, champion), which is reported."""

    train: str = "train"
    select: str = "val"
    report: str = "test"

    @model_validator(mode="after")
    def _roles_differ(self) -> Self:
        if self.select == self.report:
            raise ValueError(
                "select and report name the same split: choosing on the reported split flatters the report"
            )
        if self.train in (self.select, self.report):
            raise ValueError("train is also used to select or to report")
        return self

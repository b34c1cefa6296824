"""The learning rate as a pure function of the step, so nothing has to be saved or restored."""

import math
from dataclasses import dataclass

from torch.optim import Optimizer

POLYNOMIAL_POWER = 0.9
"""The power that segmentation code bases use."""


@dataclass(frozen=True)
class Schedule:
    """Warm-up from zero, then a decay to `final_lr`.

    Attributes:
        lr: highest learning rate.
        steps_per_epoch: optimizer steps of an epoch.
        total_steps: optimizer steps of the whole run; the last epoch may have fewer than the others.
        name: `cosine`, `polynomial` or `constant`.
        warmup: linear warm-up, as a share of all steps.
        final_lr: rate that the decay would reach one step after the last.
        per: `step`; or `epoch`: the rate is constant during an epoch, as in the published code.
    """

    lr: float
    steps_per_epoch: int
    total_steps: int
    name: str = "cosine"
    warmup: float = 0.0
    final_lr: float = 1e-6
    per: str = "step"

    def at(self, step: int) -> float:
        """Returns the rate of a step, counted from 0 over the whole run."""
        warm = round(self.warmup * self.total_steps)
        if step < warm:
            return self.lr * (step + 1) / warm
        if self.per == "epoch":
            step = step // self.steps_per_epoch * self.steps_per_epoch
        progress = min(max(step - warm, 0) / max(self.total_steps - warm, 1), 1.0)
        return self.final_lr + (self.lr - self.final_lr) * self._share(progress)

    def _share(self, progress: float) -> float:
        if self.name == "cosine":
            return (1 + math.cos(math.pi * progress)) / 2
        if self.name == "polynomial":
            return float((1 - progress) ** POLYNOMIAL_POWER)
        return 1.0

    def apply(self, optimizer: Optimizer, step: int) -> float:
        """Sets the rate of every parameter group, times the group's `lr_scale`; returns the unscaled rate."""
        rate = self.at(step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        return rate

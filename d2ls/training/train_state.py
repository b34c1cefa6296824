"""The progress of a run, as plain values that a checkpoint keeps; and the seeding of a step."""

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
import torch

STATE_VERSION = 4
"""Version of what a checkpoint holds beside the model. 4: `ended_early`, `seconds`; 3: `ema_updates`; 2: the optimizer
counts its own steps."""


@dataclass
class TrainingState:
    """Progress of a run, the same on every rank.

    Attributes:
        step: optimizer steps done; skipped ones count, as their samples were used.
        skipped: steps skipped because a loss was not finite.
        best_score: highest mIoU on the validation split so far, None before the first evaluation.
        best_epoch: its epoch, counted from 1.
        best_step: steps done then.
        best_scores: flat metrics of that epoch.
        epoch_terms: sums of the loss terms over the steps of the running epoch.
        epoch_count: number of steps in these sums.
        history: flat metrics of every finished epoch.
        ended_early: why the training has ended before its full length; empty if it has not.
        seconds: time spent up to the newest checkpoint, over all sessions, as rank 0 measures it.
    """

    step: int = 0
    skipped: int = 0
    best_score: float | None = None
    best_epoch: int = 0
    best_step: int = 0
    best_scores: dict[str, float] = field(default_factory=dict)
    epoch_terms: dict[str, float] = field(default_factory=dict)
    epoch_count: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    ended_early: str = ""
    seconds: float = field(default=0.0, compare=False)

    def add_terms(self, terms: Mapping[str, float]) -> None:
        """Adds a step's loss terms to the sums of the epoch."""
        for name, value in terms.items():
            self.epoch_terms[name] = self.epoch_terms.get(name, 0.0) + value
        self.epoch_count += 1

    def mean_terms(self) -> dict[str, float]:
        """Returns the mean loss terms of the running epoch."""
        return {name: value / max(self.epoch_count, 1) for name, value in self.epoch_terms.items()}

    def clear_terms(self) -> None:
        """Starts the sums of the next epoch."""
        self.epoch_terms, self.epoch_count = {}, 0

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`."""
        return cls(**values)


def seed_everything(*numbers: int) -> None:
    """Seeds all random generators of this process from some numbers, such as (seed, step, rank).

    The trainer does so before every step, so a resumed run needs no saved generator states. Code that draws random
    numbers in between, such as the creation of a data loader, cannot change those of later steps.
    """
    mixed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)  # noqa: NPY002 (libraries use it)
    torch.manual_seed(mixed)

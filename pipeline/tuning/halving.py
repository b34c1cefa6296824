"""Asynchronous successive halving (ASHA): which trials are pruned.

Li et al., "A System for Massively Parallel Hyperparameter Tuning" (2020), in the stopping variant of Ray Tune. Ray's
own scheduler keeps the scores in a pickle. Here they come from the trial files, so a resumed sweep compares all of its
trials.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np

from pipeline.config import Recipe
from pipeline.tuning.report import Trial
from pipeline.tuning.space import trial_recipe


@dataclass(frozen=True)
class Halving:
    """Stops a trial at a rung unless it is among the best of the trials that reached the rung before.

    Attributes:
        grace_epochs: epochs before the first rung.
        reduction_factor: the best 1/`reduction_factor` of the trials pass a rung; each rung comes this many times later
            than the one before.
        epochs: epochs of a trial; no trial is stopped at its last epoch. None: not known (`train.steps`).
    """

    grace_epochs: int
    reduction_factor: int
    epochs: int | None

    @classmethod
    def of(cls, recipe: Recipe) -> Self | None:
        """Returns the rule of a sweep; None if it stops no trials."""
        section = recipe.sweep
        if section.scheduler == "none":
            return None
        return cls(section.grace_epochs, section.reduction_factor, trial_recipe(recipe, {}).train.epochs)

    def rungs(self, epoch: int) -> list[int]:
        """Returns the epochs at which trials are compared, first to last, up to an epoch."""
        rungs, rung = [], self.grace_epochs
        while rung <= epoch and (self.epochs is None or rung < self.epochs):
            rungs.append(rung)
            rung *= self.reduction_factor
        return rungs

    def stops(self, trial: Trial, others: Iterable[Trial]) -> bool:
        """Returns whether a trial should end now.

        Args:
            trial: with the score of the epoch that has just ended.
            others: all other trials of the sweep.
        """
        reached = self.rungs(trial.epoch)
        if not reached:
            return False
        rung = reached[-1]
        own, epoch = _score_at(trial, rung)
        if own is None or epoch != trial.epoch:
            return False  # compared at this rung before
        scores = [score for other in others if (score := _score_at(other, rung)[0]) is not None]
        if not scores:
            return False
        return own < float(np.percentile(scores, 100 * (1 - 1 / self.reduction_factor)))

    def overdue(self, trials: Iterable[Trial]) -> list[Trial]:
        """Returns the trials that should have been stopped before the sweep was killed."""
        known = list(trials)
        return [
            trial
            for trial in known
            if trial.status == "started"
            and self.stops(trial, [other for other in known if other is not trial])
        ]


def _score_at(trial: Trial, rung: int) -> tuple[float | None, int]:
    """Returns a trial's score at its first evaluation from a rung on, and that epoch."""
    epochs = sorted(epoch for epoch in map(int, trial.curve) if epoch >= rung)
    return (trial.curve[str(epochs[0])], epochs[0]) if epochs else (None, 0)

"""Optuna's TPE as a searcher: with conditional keys, no repeated configuration, and finished trials after a resume.

Ray's own OptunaSearch cannot be told finished trials if the space has conditions, so this calls Optuna directly. It is
imported only for `search: tpe`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import optuna

from pipeline.config.sweep import Axis
from pipeline.tuning.report import Trial
from pipeline.tuning.space import Values, resolve, trial_key

ASKS_PER_TRIAL = 100
"""Attempts to get a configuration that was not tried before, after which the space counts as exhausted."""


class TreeParzenSearcher:
    """Proposes configurations where Optuna expects high scores.

    Args:
        space: swept keys.
        flat: the recipe's other keys, for conditions.
        seed: seed of the sampler.
        finished: configurations with their scores, from an earlier session of the same sweep.
        first: configurations to run before any suggestion (started earlier, not finished).
        trials: configurations in total, including those of earlier sessions.
    """

    def __init__(
        self,
        space: Mapping[str, Axis],
        flat: Mapping[str, Any],
        *,
        seed: int,
        finished: Iterable[tuple[Values, float | None]],
        first: Iterable[Values],
        trials: int,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        finished = list(finished)
        # The seed depends on the number of finished trials, else the sampler would draw the first configurations again.
        sampler = optuna.samplers.TPESampler(seed=seed + len(finished), multivariate=True, group=True)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._space, self._flat = space, flat
        self._scores: dict[str, float | None] = {}
        self._asked: dict[str, optuna.Trial] = {}
        self.left = trials - len(finished)
        for values, score in finished:
            trial, again = self._ask(values)
            self._close(trial, score)
            self._scores[trial_key(again)] = score
        self._first = list(first)

    def propose(self) -> Values | None:
        """Returns the next configuration; None if the budget or the space is used up."""
        if self.left <= 0:
            return None
        for _ in range(ASKS_PER_TRIAL):
            trial, values = self._ask(self._first.pop(0) if self._first else None)
            key = trial_key(values)
            if key not in self._scores:
                self._scores[key] = None
                self._asked[key] = trial
                self.left -= 1
                return values
            self._close(trial, self._scores[key])
        return None

    def tell(self, trial: Trial) -> bool:
        """Tells Optuna the best score of a trial that has ended, or that it failed; returns False."""
        if trial.status != "started" and (asked := self._asked.pop(trial.key, None)) is not None:
            score = None if trial.status == "failed" else trial.score
            self._scores[trial.key] = score
            self._close(asked, score)
        return False

    def _ask(self, values: Values | None) -> tuple[optuna.Trial, Values]:
        if values is not None:
            self._study.enqueue_trial(dict(values))
        trial = self._study.ask()
        return trial, resolve(self._space, self._flat, lambda key, axis: _suggest(trial, key, axis))

    def _close(self, trial: optuna.Trial, score: float | None) -> None:
        if score is None:
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(trial, score)


def _suggest(trial: optuna.Trial, key: str, axis: Axis) -> Any:
    if axis.values is not None:
        return trial.suggest_categorical(key, list(axis.values))
    low, high = float(axis.low or 0), float(axis.high or 0)
    if axis.integer:
        return trial.suggest_int(key, round(low), round(high), log=axis.log)
    return trial.suggest_float(key, low, high, log=axis.log)

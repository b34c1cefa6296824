"""Searchers decide what a sweep tries next: they propose configurations and are told the scores of trials."""

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from pipeline.config import Recipe
from pipeline.tuning.halving import Halving
from pipeline.tuning.records import TrialRecords
from pipeline.tuning.report import Trial
from pipeline.tuning.space import Values, base_recipe, configurations


class Searcher(Protocol):
    """Proposes configurations; is told of every evaluation and of every end of a trial."""

    @property
    def left(self) -> int:
        """Number of configurations still to propose, at most."""

    def propose(self) -> Values | None:
        """Returns the next configuration; None if there is none left."""

    def tell(self, trial: Trial) -> bool:
        """Takes a trial with its newest score.

        Args:
            trial: `status` is `started` after an evaluation, else the trial has ended.

        Returns:
            Whether a trial that has not ended should stop now.
        """


class ListSearcher:
    """Proposes given configurations in order, whatever the scores: for grid, random search and seeds.

    Args:
        configurations: the configurations.
    """

    def __init__(self, configurations: Iterable[Values]) -> None:
        self._pending = list(configurations)

    @property
    def left(self) -> int:
        """Number of configurations still to propose."""
        return len(self._pending)

    def propose(self) -> Values | None:
        """Returns the next configuration."""
        return self._pending.pop(0) if self._pending else None

    def tell(self, trial: Trial) -> bool:
        """Returns False: no trial is stopped."""
        return False


class HalvingSearcher:
    """Wraps another searcher, and stops trials early by successive halving.

    Args:
        searcher: proposes the configurations.
        rule: decides which trials stop.
        known: returns the trials of the search so far by key, which the rule compares.
    """

    def __init__(self, searcher: Searcher, rule: Halving, known: Callable[[], Mapping[str, Trial]]) -> None:
        self._searcher, self._rule, self._known = searcher, rule, known

    @property
    def left(self) -> int:
        """Number of configurations still to propose, at most."""
        return self._searcher.left

    def propose(self) -> Values | None:
        """Returns the next configuration of the wrapped searcher."""
        return self._searcher.propose()

    def tell(self, trial: Trial) -> bool:
        """Tells the wrapped searcher; returns whether the trial is too far behind."""
        stop = self._searcher.tell(trial)
        others = [other for other in self._known().values() if other.key != trial.key]
        return stop or (trial.status == "started" and self._rule.stops(trial, others))


def make_searcher(recipe: Recipe, records: TrialRecords) -> Searcher:
    """Makes the searcher of a sweep; it knows the trials of earlier sessions.

    Args:
        recipe: the sweep's recipe.
        records: all trials that ever started; those that ended are not proposed again.
    """
    searcher = _proposing(recipe, records)
    rule = Halving.of(recipe)
    return HalvingSearcher(searcher, rule, lambda: records.searched(recipe)) if rule else searcher


def _proposing(recipe: Recipe, records: TrialRecords) -> Searcher:
    if recipe.sweep.search != "tpe":
        return ListSearcher(values for values in configurations(recipe) if not records.ended(values))
    from pipeline.tuning.tpe import TreeParzenSearcher  # needs the extra `search`

    known = records.searched(recipe).values()
    return TreeParzenSearcher(
        recipe.sweep.space,
        base_recipe(recipe).flat(),
        seed=recipe.seed,
        finished=[(dict(trial.values), trial.score) for trial in known if trial.ended],
        first=[dict(trial.values) for trial in known if not trial.ended],
        trials=recipe.sweep.num_trials or 1,
    )

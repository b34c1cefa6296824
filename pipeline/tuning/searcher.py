"""What a sweep tries next: every search proposes configurations and is told how they did."""

from collections.abc import Iterable
from typing import Protocol

from pipeline.config import Recipe
from pipeline.tuning.records import TrialRecords
from pipeline.tuning.space import Values, base_recipe, configurations


class Search(Protocol):
    """Proposes configurations and is told their scores."""

    @property
    def left(self) -> int:
        """Configurations still to propose, at most."""

    def propose(self) -> Values | None:
        """Returns the next configuration; None where there is none left."""

    def tell(self, values: Values, score: float | None) -> None:
        """Takes the best score of a proposed configuration; None where its trial failed."""


class ListedSearch:
    """Proposes listed configurations in their order, whatever the scores are.

    Args:
        chosen: the configurations.
    """

    def __init__(self, chosen: Iterable[Values]) -> None:
        self._pending = list(chosen)

    @property
    def left(self) -> int:
        """Configurations still to propose."""
        return len(self._pending)

    def propose(self) -> Values | None:
        """Returns the next one."""
        return self._pending.pop(0) if self._pending else None

    def tell(self, values: Values, score: float | None) -> None:
        """Does nothing."""


def make_search(recipe: Recipe, records: TrialRecords) -> Search:
    """Makes the search of a sweep, with what an earlier session of it found.

    Args:
        recipe: the sweep's recipe.
        records: trials that ever started; those that ended are not proposed again.
    """
    if recipe.sweep.search != "tpe":
        return ListedSearch(values for values in configurations(recipe) if not records.ended(values))
    from pipeline.tuning.tpe import TreeParzenSearch

    known = records.searched(recipe).values()
    return TreeParzenSearch(
        recipe.sweep.space,
        base_recipe(recipe).flat(),
        seed=recipe.seed,
        finished=[(dict(trial.values), trial.score) for trial in known if trial.ended],
        first=[dict(trial.values) for trial in known if not trial.ended],
        trials=recipe.sweep.num_trials or 1,
    )

"""How a search, a pruning rule and the records plug into Ray Tune. Imports Ray."""

from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from pipeline.tuning.halving import Halving
from pipeline.tuning.records import progressed
from pipeline.tuning.report import METRIC
from pipeline.tuning.searcher import Search
from pipeline.tuning.trials import TrialEvents


class ProposingSearcher(Searcher):
    """Asks a search for configurations when Tune has room for a trial, and tells it the best scores."""

    def __init__(self, sweep: str, search: Search, events: TrialEvents) -> None:
        super().__init__(metric=METRIC, mode="max")
        self._sweep, self._search, self._events = sweep, search, events
        self._keys: dict[str, str] = {}

    def suggest(self, trial_id: str) -> Any:
        """Returns the config of the next trial; `FINISHED` where there is none left."""
        values = self._search.propose()
        if values is None:
            return Searcher.FINISHED
        trial = self._events.start(self._sweep, values)
        self._keys[trial_id] = trial.key
        return {"key": trial.key, "name": trial.name, "values": dict(values), "run_id": trial.run_id}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Does nothing: scores count when a trial ends."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tells the search the best score of a trial that ended."""
        trial = self._events.records.trials[self._keys[trial_id]]
        failed = error or trial.status == "failed"
        self._search.tell(dict(trial.values), None if failed else trial.score)


class HalvingScheduler(FIFOScheduler):
    """Starts trials in their order and stops those that a rule stops."""

    def __init__(self, rule: Halving, events: TrialEvents) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rule, self._events = rule, events

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decides by the records of all trials of the sweep, with this result, which the callback takes next."""
        records = self._events.records.trials
        key = trial.config["key"]
        now = progressed(records[key], result, 0.0)
        others = [other for other in records.values() if other.key != key]
        return self.STOP if self._rule.stops(now, others) else self.CONTINUE


class RecordingCallback(tune.Callback):
    """Passes what happens to trials on to the records."""

    def __init__(self, events: TrialEvents) -> None:
        self._events = events

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """After a report of a trial."""
        self._events.result(trial.config["key"], result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """After the last report of a trial, or after it was stopped."""
        self._events.end(trial.config["key"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """After the process of a trial died more often than is allowed."""
        times = trial.num_failures
        self._events.end(
            trial.config["key"], f"its process died {times} time(s), the last one: {_last_line(trial)}"
        )


def _last_line(trial: Any) -> str:
    error = trial.get_error()
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] if error else []
    return lines[-1] if lines else "no message"

"""Runs the trials of a sweep on Ray Tune: Tune starts processes, a searcher decides what they run and when to stop."""

import os
import time
from dataclasses import replace
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher as TuneSearcher

from d2ls import storage
from pipeline.config import Recipe
from pipeline.tuning.records import TrialEvents, progressed
from pipeline.tuning.report import METRIC
from pipeline.tuning.searcher import Searcher
from pipeline.tuning.space import trial_recipe
from pipeline.tuning.trial_process import TrialContext, TrialProcess

HEAD = {"node:__internal_head__": 0.01}
"""Resources of a trial that has a worker group: no CPU, so it never takes one from the workers that it waits for."""


def run_trials(
    name: str,
    recipe: Recipe,
    searcher: Searcher,
    context: TrialContext,
    events: TrialEvents,
    *,
    concurrent: int,
    gpus: float = 0.0,
) -> None:
    """Runs the configurations that a searcher proposes, each to its end or until the searcher stops it.

    Args:
        name: of the sweep.
        recipe: the sweep's recipe.
        searcher: proposes configurations and stops trials.
        context: shared by all trials.
        events: keeps the records.
        concurrent: trials at once.
        gpus: GPUs of a worker.

    Raises:
        KeyboardInterrupt: Tune was asked to stop.
    """
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Tune would return as if all trials were done
    os.environ.setdefault(
        "TUNE_DISABLE_STRICT_METRIC_CHECKING", "1"
    )  # a trial may fail before its first score
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # the records print them
    os.environ.setdefault("TUNE_WARN_THRESHOLD_S", "10")  # half a second of bookkeeping does not matter here
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the other one prints a banner whatever its verbosity
    one = trial_recipe(recipe, {}).cluster
    here = one.worker_range == (1, 1)
    held = {"CPU": one.cpus_per_worker, **({"GPU": gpus} if gpus else {})} if here else HEAD
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(TrialProcess, context=context), tune.PlacementGroupFactory([held])
        ),
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            search_alg=ProposingSearcher(name, searcher, events),
            num_samples=-1,
            max_concurrent_trials=concurrent,
            scheduler=StoppingScheduler(searcher, events),
            reuse_actors=here,  # the next trial need not import again; a worker group is never reused
        ),
        run_config=tune.RunConfig(
            name=f"tune-{int(time.time())}",
            storage_path=storage.join(recipe.output_dir, name),
            callbacks=[RecordingCallback(events)],
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=recipe.cluster.max_failures),
        ),
    )
    tuner.fit()
    events.records.flush()
    # Tune returns when all trials have ended, or when it was asked to stop.
    if any(trial.status == "started" for trial in events.records.trials.values()):
        raise KeyboardInterrupt


class ProposingSearcher(TuneSearcher):
    """Asks a searcher for configurations when Tune has room for a trial, and tells it how trials ended."""

    def __init__(self, sweep: str, searcher: Searcher, events: TrialEvents) -> None:
        super().__init__(metric=METRIC, mode="max")
        self._sweep, self._searcher, self._events = sweep, searcher, events
        self._keys: dict[str, str] = {}

    def suggest(self, trial_id: str) -> Any:
        """Returns the config of the next trial; `FINISHED` if there is none left."""
        values = self._searcher.propose()
        if values is None:
            return TuneSearcher.FINISHED
        trial = self._events.start(self._sweep, values)
        self._keys[trial_id] = trial.key
        return {"key": trial.key, "name": trial.name, "values": dict(values), "run_id": trial.run_id}

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: the records are the state. Without this method Tune warns that it cannot save."""

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Does nothing: `StoppingScheduler` tells the searcher of results."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tells the searcher of a trial that has ended."""
        trial = self._events.records.trials[self._keys[trial_id]]
        if error or trial.status == "started":
            trial = replace(trial, status="failed" if error else "pruned")
        self._searcher.tell(trial)


class StoppingScheduler(FIFOScheduler):
    """Starts trials in order, and stops those that the searcher rejects."""

    def __init__(self, searcher: Searcher, events: TrialEvents) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._searcher, self._events = searcher, events

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Asks the searcher about this result; the callback records it afterwards."""
        now = progressed(self._events.records.trials[trial.config["key"]], result, 0.0)
        return self.STOP if now.status == "started" and self._searcher.tell(now) else self.CONTINUE


class RecordingCallback(tune.Callback):
    """Passes events of trials on to the records."""

    def __init__(self, events: TrialEvents) -> None:
        self._events = events

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Records a report of a trial."""
        self._events.result(trial.config["key"], result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Records the end of a trial, or that it was stopped."""
        self._events.end(trial.config["key"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Records that the process of a trial died more often than allowed."""
        times = trial.num_failures
        self._events.end(
            trial.config["key"], f"its process died {times} time(s), the last one: {_last_line(trial)}"
        )


def _last_line(trial: Any) -> str:
    error = trial.get_error()
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] if error else []
    return lines[-1] if lines else "no message"

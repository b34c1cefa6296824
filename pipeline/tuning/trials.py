"""The trials of a sweep: Ray Tune starts their processes and decides when, a search says which, records say how far.

What a trial is and how far it got stands in `<sweep>/trials/<key>.json`, written here, in the sweep's own process, and
not in Tune's pickled state: a sweep that was killed starts a new Tune session over the configurations that are not
finished.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

from d2ls import storage
from pipeline.config import Recipe
from pipeline.tuning.halving import Halving
from pipeline.tuning.records import TrialRecords, progressed
from pipeline.tuning.report import METRIC, Trial
from pipeline.tuning.searcher import Search
from pipeline.tuning.space import trial_recipe

if TYPE_CHECKING:
    from pipeline.tuning.trial_process import TrialContext

HEAD = {"node:__internal_head__": 0.01}
"""What a trial with a worker group holds itself: no CPU, so it never starves the workers that it waits for."""

_log = logging.getLogger(__name__)
Arguments = ParamSpec("Arguments")


@dataclass
class TrialEvents:
    """Keeps the records while Tune runs trials, and tells of it; all in the sweep's process.

    Attributes:
        records: of all trials.
        begun: called with a trial that starts or goes on; returns its MLflow run, None: the trial opens its own.
        told: called with a trial and `epoch`, `finished`, `pruned` or `failed`.
    """

    records: TrialRecords
    begun: Callable[[Trial], str | None] = lambda trial: trial.run_id
    told: Callable[[Trial, str], None] = lambda trial, event: None
    _since: dict[str, float] = field(default_factory=dict)

    def __reduce__(self) -> Any:
        return TrialEvents, (
            TrialRecords(self.records.folder),
        )  # Tune pickles what it is given, for its own restore

    def start(self, sweep: str, values: Mapping[str, Any]) -> Trial:
        """Notes that a configuration is tried; returns its trial."""
        trial = self.records.start(sweep, dict(values))
        run_id = _guarded(self.begun)(trial)
        self._since[trial.key] = time.monotonic() - trial.seconds
        return self.records.save(replace(trial, run_id=run_id)) if run_id else trial

    def result(self, key: str, result: Mapping[str, Any]) -> None:
        """Takes what a trial's process reported."""
        seconds = time.monotonic() - self._since[key]
        trial = self.records.save(progressed(self.records.trials[key], result, seconds))
        if trial.status == "started":
            _guarded(self.told)(trial, "epoch")

    def end(self, key: str, error: str | None = None) -> None:
        """Notes that Tune is done with a trial: one that did not end by itself was pruned, or failed with an error."""
        trial = self.records.trials[key]
        if trial.status == "started":
            trial = replace(trial, status="failed" if error else "pruned", error=error)
            trial = self.records.save(trial)
        _guarded(self.told)(trial, trial.status)


def _guarded(function: "Callable[Arguments, Any]") -> "Callable[Arguments, Any]":
    """Makes errors of a function a warning: what tells of trials must not end them."""

    @wraps(function)
    def call(*args: Arguments.args, **keywords: Arguments.kwargs) -> Any:
        try:
            return function(*args, **keywords)
        except Exception as error:
            _log.warning("%s: %s", type(error).__name__, error, exc_info=_log.isEnabledFor(logging.DEBUG))
            return None

    return call


def run_trials(
    name: str,
    recipe: Recipe,
    search: Search,
    context: "TrialContext",
    events: TrialEvents,
    *,
    concurrent: int,
    gpus: float = 0.0,
    prune: bool = True,
) -> None:
    """Runs what a search proposes, to the end or until the scheduler prunes it.

    Args:
        name: of the sweep.
        recipe: the sweep's recipe.
        search: proposes configurations.
        context: what the trials share.
        events: keeps the records.
        concurrent: trials at once.
        gpus: GPUs of a worker.
        prune: let the recipe's scheduler stop trials.

    Raises:
        KeyboardInterrupt: Tune was told to stop.
    """
    from ray import tune

    from pipeline.tuning.ray_tune import HalvingScheduler, ProposingSearcher, RecordingCallback
    from pipeline.tuning.trial_process import TrialProcess

    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Tune would return as if all were done
    os.environ.setdefault(
        "TUNE_DISABLE_STRICT_METRIC_CHECKING", "1"
    )  # a trial may fail before its first score
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # the records say them
    os.environ.setdefault("TUNE_WARN_THRESHOLD_S", "10")  # half a second of bookkeeping is no bottleneck here
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the other one prints a banner whatever its verbosity
    rule, one = halving(recipe), trial_recipe(recipe, {}).cluster
    here = one.worker_range == (1, 1)
    held = {"CPU": one.cpus_per_worker, **({"GPU": gpus} if gpus else {})} if here else HEAD
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(TrialProcess, context=context), tune.PlacementGroupFactory([held])
        ),
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            search_alg=ProposingSearcher(name, search, events),
            num_samples=-1,
            max_concurrent_trials=concurrent,
            scheduler=HalvingScheduler(rule, events) if rule and prune else None,
            reuse_actors=here,  # the next trial finds its imports done; a worker group is never used again
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
    # Tune returns when all trials have ended, or when it was told to stop.
    if any(trial.status == "started" for trial in events.records.trials.values()):
        raise KeyboardInterrupt


def halving(recipe: Recipe) -> Halving | None:
    """Returns the rule by which trials are pruned; None where none are."""
    if recipe.sweep.scheduler == "none":
        return None
    return Halving(
        recipe.sweep.grace_epochs, recipe.sweep.reduction_factor, trial_recipe(recipe, {}).train.epochs
    )

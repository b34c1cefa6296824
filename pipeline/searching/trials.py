"""The trials of a sweep: Ray Tune decides which run and when, each trial is a training run of its own on Ray Train.

A trial's driver takes a sliver of the head node and no CPU, so it can never starve the workers it waits for. What a
trial is and how far it got stands in `<sweep>/trials/<key>.json`, not in Tune's pickled state: a sweep that was killed
starts a new Tune session over the configurations that are not finished.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from d2ls import storage
from d2ls.errors import D2LSError
from pipeline.config import Recipe, parse_recipe
from pipeline.searching.report import METRIC, SEED, Trial
from pipeline.searching.space import Values, base_recipe, trial_key, trial_recipe

DRIVER_RESOURCES = {"node:__internal_head__": 0.01}


@dataclass(frozen=True)
class TrialRecords:
    """The trial files of one sweep, below any URI."""

    folder: str

    def save(self, trial: Trial) -> None:
        """Writes or replaces a trial's file, whole."""
        content = json.dumps(trial.to_dict(), indent=2).encode()
        storage.write_bytes(storage.join(self.folder, f"{trial.key}.json"), content)

    def load(self, key: str) -> Trial | None:
        """Reads a trial, None where it never started."""
        uri = storage.join(self.folder, f"{key}.json")
        return Trial(**json.loads(storage.read_bytes(uri))) if storage.exists(uri) else None

    def all(self) -> list[Trial]:
        """Reads all trials that ever started, by key."""
        names = [entry.base_name for entry in storage.list_files(self.folder)]
        keys = [name.removesuffix(".json") for name in names if name.endswith(".json") and name[0] != "."]
        return [trial for trial in map(self.load, keys) if trial]

    def searched(self, recipe: Recipe) -> list[Trial]:
        """Reads the trials of the search, by key: all but the repeats of the best one with further seeds."""
        return [trial for trial in self.all() if SEED not in trial.values or SEED in recipe.sweep.space]


@dataclass(frozen=True)
class TrialContext:
    """What every trial of a sweep shares; plain values, sent to the trial's process."""

    sweep: str
    recipe: Mapping[str, Any]
    parent_run_id: str
    records: TrialRecords


def run_trial(config: Mapping[str, Any], *, context: TrialContext) -> None:
    """One trial, in a process of Ray Tune's: trains, reports every epoch, keeps its record."""
    from ray import tune

    from pipeline import train

    recipe = parse_recipe(context.recipe)
    values = dict(config["values"])
    key = trial_key(values)
    trial = context.records.load(key) or Trial(key, f"{context.sweep}-{key}", values)
    trial = replace(trial, status="started", error=None)
    context.records.save(trial)
    started, before = time.monotonic(), trial.seconds

    def on_epoch(metrics: Mapping[str, float]) -> None:
        nonlocal trial
        trial = _progressed(trial, metrics, before + time.monotonic() - started)
        context.records.save(trial)  # before the report: pruning ends this process inside it
        if METRIC in metrics:  # Tune ranks by it, so it refuses reports of epochs without an evaluation
            tune.report({**metrics, "key": key})

    try:
        result = train.run(
            trial_recipe(recipe, values),
            name=trial.name,
            resume="auto",
            parent_run_id=context.parent_run_id,
            on_epoch=on_epoch,
            quiet=True,
        )
    except Exception as error:  # whatever it was, the report says it beside the trial
        known = context.records.load(key)
        if known is None or known.status != "pruned":  # pruning ends this process in the midst of its work
            words = str(error) if isinstance(error, D2LSError) else f"{type(error).__name__}: {error}"
            context.records.save(replace(trial, status="failed", error=words))
        raise
    trial = replace(
        trial, status="finished", run_id=result.run_id, seconds=before + time.monotonic() - started
    )
    trial = replace(trial, score=result.best_scores[METRIC], best_epoch=result.best_epoch)
    context.records.save(trial)


def run_trials(
    recipe: Recipe,
    pending: Sequence[Values],
    context: TrialContext,
    *,
    concurrent: int,
    on_progress: Callable[[Trial, str], None],
    listed: bool = False,
) -> None:
    """Runs configurations to their end, pruned where the scheduler says so.

    Args:
        recipe: the sweep's recipe; its `sweep` section names search and scheduler.
        pending: configurations still to run; for `tpe` those to try first.
        context: what the trials share.
        concurrent: trials at once.
        on_progress: called in this process with a trial and `epoch`, `finished`, `pruned` or `failed`.
        listed: just these configurations, whatever the search is, and none of them pruned.
    """
    from ray import tune

    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Tune would return as if all were done
    os.environ.setdefault("TUNE_WARN_THRESHOLD_S", "10")  # half a second of bookkeeping is no bottleneck here
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the other one prints a banner whatever its verbosity
    chooses = recipe.sweep.search == "tpe" and not listed
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, context=context), DRIVER_RESOURCES),
        param_space={"values": tune.grid_search(list(pending))} if not chooses else None,
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            max_concurrent_trials=concurrent,
            scheduler=None if listed else _scheduler(recipe),
            reuse_actors=True,  # the next trial finds its imports done
            **(_search(recipe, pending, context) if chooses else {}),
        ),
        run_config=tune.RunConfig(
            name=f"tune-{int(time.time())}",
            storage_path=storage.join(recipe.storage, context.sweep),
            callbacks=[_progress_callback(context.records, on_progress)],
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )
    tuner.fit()
    # Those that wait all start; one without a record, or one that has not ended, means that Tune was told to stop.
    found = [context.records.load(trial_key(values)) for values in pending]
    if chooses:
        found += context.records.searched(recipe)
    if any(trial is None or trial.status == "started" for trial in found):
        raise KeyboardInterrupt


def _progressed(trial: Trial, metrics: Mapping[str, float], seconds: float) -> Trial:
    score, epoch = metrics.get(METRIC), int(metrics["epoch"])
    if score is not None and (trial.score is None or score > trial.score):
        trial = replace(trial, score=float(score), best_epoch=epoch)
    return replace(trial, epoch=epoch, seconds=seconds)


def _scheduler(recipe: Recipe) -> Any:
    if recipe.sweep.scheduler == "none":
        return None
    from ray.tune.schedulers import ASHAScheduler

    epochs = max(trial_recipe(recipe, {}).train.epochs, 1)
    # One above the epochs: ASHA ends a trial that reaches max_t in the middle of its last report.
    return ASHAScheduler(
        time_attr="epoch",
        max_t=epochs + 1,
        grace_period=min(recipe.sweep.grace_epochs, epochs),
        reduction_factor=recipe.sweep.reduction_factor,
    )


def _search(recipe: Recipe, pending: Sequence[Values], context: TrialContext) -> dict[str, Any]:
    from pipeline.searching.tpe import TreeParzenSearch

    done = [trial for trial in context.records.searched(recipe) if trial.status in ("finished", "pruned")]
    search = TreeParzenSearch(
        recipe.sweep.space,
        base_recipe(recipe).flat(),
        metric=METRIC,
        seed=recipe.seed,
        finished=[(dict(trial.values), trial.score) for trial in done if trial.score is not None],
        first=pending,
        trials=recipe.sweep.trials or 1,
    )
    return {"search_alg": search, "num_samples": -1}


def _progress_callback(records: TrialRecords, on_progress: Callable[[Trial, str], None]) -> Any:
    from ray import tune

    class Progress(tune.Callback):
        """Tells the sweep what Tune saw; runs in the sweep's own process."""

        def __reduce__(self) -> Any:
            return tune.Callback, ()  # Tune saves its callbacks; ours is of no use in another process

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            self._tell(result.get("key"), "epoch")

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            record = records.load(str((trial.last_result or {}).get("key")))
            if record and record.status == "started":
                record = replace(record, status="pruned")
                records.save(record)
            if record:
                on_progress(record, record.status)

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            key = (trial.last_result or {}).get("key") or trial_key(trial.config.get("values", {}))
            self._tell(key, "failed")

        def _tell(self, key: Any, event: str) -> None:
            record = records.load(str(key))
            if record:
                on_progress(record, event)

    return Progress()

"""The trial files of a sweep. Only the process of the sweep writes them.

Configuration and progress of a trial are in `<sweep>/trials/<key>.json`, not in Ray Tune's pickled state. A resumed
sweep starts a new Tune session with the unfinished configurations.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, ParamSpec

from d2ls import storage
from d2ls.errors import ConfigError, StorageError
from pipeline.config import Recipe
from pipeline.tuning.report import METRIC, SEED, Trial
from pipeline.tuning.space import Values, trial_key

_log = logging.getLogger(__name__)
Arguments = ParamSpec("Arguments")


@dataclass
class TrialRecords:
    """Trials by key, in memory and in `<folder>/<key>.json`.

    A file that cannot be written is written again with the next change of any trial, so an unavailable storage does not
    end a sweep.

    Attributes:
        folder: location of the files.
        trials: all trials that ever started.
    """

    folder: str
    trials: dict[str, Trial] = field(default_factory=dict)
    _unsaved: set[str] = field(default_factory=set)

    @classmethod
    def load(cls, folder: str) -> "TrialRecords":
        """Reads the files of a sweep; there are none before its first trial.

        Raises:
            ConfigError: a file is damaged; names it.
        """
        names = [entry.base_name for entry in storage.list_files(folder)]
        files = [storage.join(folder, name) for name in names if name.endswith(".json") and name[0] != "."]
        return cls(folder, {trial.key: trial for trial in map(_read, files)})

    def start(self, sweep: str, values: Values) -> Trial:
        """Records that a trial starts or continues."""
        key = trial_key(values)
        trial = self.trials.get(key) or Trial(key, f"{sweep}-{key}", values)
        return self.save(replace(trial, status="started", error=None))

    def save(self, trial: Trial) -> Trial:
        """Replaces a trial; returns it."""
        self.trials[trial.key] = trial
        self._unsaved.add(trial.key)
        try:
            self.flush()
        except StorageError as error:
            _log.warning("the record of a trial cannot be written now: %s", error)
        return trial

    def flush(self) -> None:
        """Writes files that could not be written before.

        Raises:
            StorageError: they still cannot be written.
        """
        for key in sorted(self._unsaved):
            content = json.dumps(self.trials[key].to_dict(), indent=2).encode()
            storage.write_bytes(storage.join(self.folder, f"{key}.json"), content)
            self._unsaved.discard(key)

    def searched(self, recipe: Recipe) -> dict[str, Trial]:
        """Returns the trials of the search by key, without the repeats of the best configuration."""
        swept = SEED in recipe.sweep.space
        selected = {key: trial for key, trial in self.trials.items() if swept or SEED not in trial.values}
        return dict(sorted(selected.items()))

    def get(self, values: Values) -> Trial | None:
        """Returns the trial of a configuration; None if it never started."""
        return self.trials.get(trial_key(values))

    def ended(self, values: Values) -> bool:
        """Returns whether a configuration has run to its end, or was pruned."""
        trial = self.get(values)
        return trial is not None and trial.ended


def progressed(trial: Trial, result: Mapping[str, Any], seconds: float) -> Trial:
    """Returns a trial updated by a report of its process.

    Args:
        trial: the trial before.
        result: any of `epoch` and its score (`METRIC`), `curve` (scores by epoch), `status` and `error`.
        seconds: wall time so far.
    """
    curve = {**trial.curve, **result.get("curve", {})}
    if METRIC in result:
        curve[f"{result['epoch']:.0f}"] = float(result[METRIC])
    best = max(curve, key=lambda epoch: (curve[epoch], -int(epoch)), default=None)
    return replace(
        trial,
        status=result.get("status", trial.status),
        error=result.get("error"),
        epoch=max([int(result.get("epoch", trial.epoch)), *map(int, curve)]),
        score=None if best is None else curve[best],
        best_epoch=0 if best is None else int(best),
        curve=curve,
        seconds=seconds,
    )


def _read(uri: str) -> Trial:
    try:
        return Trial(**json.loads(storage.read_bytes(uri)))
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{uri}: not the record of a trial ({error}); delete it, its trial runs again"
        ) from error


@dataclass
class TrialEvents:
    """Keeps the records while Tune runs trials, and calls back, in the process of the sweep.

    Attributes:
        records: of all trials.
        on_start: called with a trial that starts or continues; returns its MLflow run, or None if the trial opens one.
        on_event: called with a trial and `epoch`, `finished`, `pruned` or `failed`.
    """

    records: TrialRecords
    on_start: Callable[[Trial], str | None] = lambda trial: trial.run_id
    on_event: Callable[[Trial, str], None] = lambda trial, event: None
    _since: dict[str, float] = field(default_factory=dict)

    def __reduce__(self) -> Any:
        return TrialEvents, (
            TrialRecords(self.records.folder),
        )  # Tune pickles what it is given, for its own restore

    def start(self, sweep: str, values: Mapping[str, Any]) -> Trial:
        """Records that a configuration is tried; returns its trial."""
        trial = self.records.start(sweep, dict(values))
        run_id = _guarded(self.on_start)(trial)
        self._since[trial.key] = time.monotonic() - trial.seconds
        return self.records.save(replace(trial, run_id=run_id)) if run_id else trial

    def result(self, key: str, result: Mapping[str, Any]) -> None:
        """Takes a report of a trial's process."""
        seconds = time.monotonic() - self._since[key]
        trial = self.records.save(progressed(self.records.trials[key], result, seconds))
        if trial.status == "started":
            _guarded(self.on_event)(trial, "epoch")

    def end(self, key: str, error: str | None = None) -> None:
        """Records that Tune has ended a trial: pruned, or failed with an error, unless it had ended by itself."""
        trial = self.records.trials[key]
        if trial.status == "started":
            trial = replace(trial, status="failed" if error else "pruned", error=error)
            trial = self.records.save(trial)
        _guarded(self.on_event)(trial, trial.status)


def _guarded(function: "Callable[Arguments, Any]") -> "Callable[Arguments, Any]":
    """Turns errors of a function into warnings: an error in reporting must not end a trial."""

    @wraps(function)
    def call(*args: Arguments.args, **keywords: Arguments.kwargs) -> Any:
        try:
            return function(*args, **keywords)
        except Exception as error:
            _log.warning("%s: %s", type(error).__name__, error, exc_info=_log.isEnabledFor(logging.DEBUG))
            return None

    return call

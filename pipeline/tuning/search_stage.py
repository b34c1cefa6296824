"""The search stage of a sweep: runs its trials, and reports them on the terminal and in MLflow."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from d2ls import storage
from d2ls.errors import TrainingError
from pipeline.console import heading
from pipeline.figures import sweep_figures
from pipeline.tracking import RunWriter
from pipeline.tracking.runs import NOTE_TAG
from pipeline.training import tracked_run
from pipeline.training.run_folder import PRUNED
from pipeline.tuning.display import SweepProgress, share_done, show_trials
from pipeline.tuning.halving import Halving
from pipeline.tuning.plan import Plan
from pipeline.tuning.ray_tune import run_trials
from pipeline.tuning.records import TrialEvents, TrialRecords
from pipeline.tuning.report import METRIC, SEED, Configuration, SweepSummary, Trial
from pipeline.tuning.searcher import ListSearcher, Searcher, make_searcher
from pipeline.tuning.space import Values, describe, trial_recipe
from pipeline.tuning.sweep import Sweep
from pipeline.tuning.trial_process import TrainTrial, TrialContext


def search(sweep: Sweep, plan: Plan, train_trial: TrainTrial) -> tuple[SweepSummary, Configuration]:
    """Runs the remaining trials, then the best configuration with more seeds, and reports.

    Args:
        sweep: the sweep.
        plan: its plan.
        train_trial: trains a trial.

    Returns:
        All trials, and the best configuration.

    Raises:
        TrainingError: no trial has a score.
    """
    runner = _Runner(sweep, train_trial, plan.concurrent or 1)
    records = runner.records
    rule = Halving.of(sweep.recipe)
    for trial in rule.overdue(records.searched(sweep.recipe).values()) if rule else ():
        records.save(replace(trial, status="pruned"))
    # A killed sweep may have recorded that a trial is pruned, but not ended its run.
    for trial in records.trials.values():
        if trial.status == "pruned" and sweep.folder_of(trial).metadata().get("state", PRUNED) != PRUNED:
            _end_run(sweep, trial)
    searcher = make_searcher(sweep.recipe, records)
    heading(sweep.console, f"trials ({searcher.left} of {plan.trials} to run)")
    runner.run(searcher)
    trials = list(records.searched(sweep.recipe).values())
    summary = SweepSummary(sweep.name, trials, trial_recipe(sweep.recipe, {}).train.length)
    best = summary.best
    if best is None:
        raise TrainingError(_no_score(sweep, summary))
    if sweep.seeds > 1:
        summary = replace(summary, repeats=_repeat(runner, best.values))
    _report(sweep, summary, best)
    return summary, best


class _Runner:
    """Runs trials: shows their progress, and opens and ends their MLflow runs."""

    def __init__(self, sweep: Sweep, train_trial: TrainTrial, concurrent: int) -> None:
        self.sweep, self.records = sweep, TrialRecords.load(sweep.trials_uri)
        self._context = TrialContext(sweep.recipe.to_dict(), sweep.run_id, train_trial)
        self._concurrent = concurrent

    def run(self, searcher: Searcher) -> None:
        """Runs the configurations that a searcher proposes."""
        if not searcher.left:
            return
        sweep, trial = self.sweep, trial_recipe(self.sweep.recipe, {})
        going_on = [trial for trial in self.records.trials.values() if not trial.ended]
        before = {trial.key: share_done(self._latest(trial)) for trial in going_on}
        with SweepProgress(
            sweep.console, searcher.left, trial.train.epochs, self._running, self._latest, before
        ) as progress:

            def on_event(trial: Trial, event: str) -> None:
                progress(trial, event)
                if event != "epoch":
                    _end_run(sweep, trial)

            events = TrialEvents(self.records, lambda trial: _open_run(sweep, trial), on_event)
            gpus = sweep.cluster.per_worker(trial.cluster).get("GPU", 0.0)
            run_trials(
                sweep.name,
                sweep.recipe,
                searcher,
                self._context,
                events,
                concurrent=self._concurrent,
                gpus=gpus,
            )

    def _running(self) -> list[Trial]:
        return [trial for trial in list(self.records.trials.values()) if trial.status == "started"]

    def _latest(self, trial: Trial) -> dict[str, Any]:
        return self.sweep.folder_of(trial).latest()


def _repeat(runner: _Runner, best: Mapping[str, Any]) -> list[Trial]:
    """Trains the best configuration with more seeds, without stopping any early; returns these trials."""
    sweep, records = runner.sweep, runner.records
    seeds = [sweep.recipe.seed + offset for offset in range(1, sweep.seeds)]
    repeats: list[Values] = [{**best, SEED: seed} for seed in seeds]
    heading(sweep.console, f"repeats of {describe(best)} with seeds {seeds}")
    runner.run(ListSearcher(values for values in repeats if not records.ended(values)))
    return [trial for values in repeats if (trial := records.get(values))]


def _open_run(sweep: Sweep, trial: Trial) -> str:
    """Opens the MLflow run of a trial here, where MLflow is imported already, so that no trial waits for its import."""
    recipe = trial_recipe(sweep.recipe, trial.values)
    folder = sweep.folder_of(trial)
    if not folder.exists():
        folder.create(recipe)
    return tracked_run.open_run(sweep.store, recipe, sweep.shards.card, folder, "trial", sweep.run_id)


def _end_run(sweep: Sweep, trial: Trial) -> None:
    """Ends the run folder of a trial if its process could not, then its MLflow run in the same state."""
    folder = sweep.folder_of(trial)
    if trial.status == "pruned":
        folder.end("pruned", f"pruned by {sweep.recipe.sweep.scheduler} after epoch {trial.epoch}")
    elif folder.metadata().get("state") not in tracked_run.STATUS:
        folder.end(trial.status, trial.error or "")
    tracked_run.settle(sweep.store, folder)


def _no_score(sweep: Sweep, summary: SweepSummary) -> str:
    errors = {trial.error for trial in summary.trials if trial.error}
    reason = "; ".join(sorted(filter(None, errors))) or "see the lines above"
    return f"sweep {sweep.name}: no trial reached an evaluation: {reason}. Fix it and `--resume {sweep.name}`"


def _report(sweep: Sweep, summary: SweepSummary, best: Configuration) -> None:
    """Prints and saves the report, and queues it for MLflow."""
    show_trials(sweep.console, summary)
    report = summary.to_markdown()
    storage.write_bytes(storage.join(sweep.folder.uri, "report.md"), report.encode())
    values = {f"best/{METRIC.replace('val/', '')}": best.mean}
    repeated = Configuration(best.values, [*best.trials, *summary.repeats])
    if repeated.deviation is not None:
        values |= {"repeats/mean": repeated.mean, "repeats/deviation": repeated.deviation}
    with RunWriter(sweep.store.uri, sweep.run_id, sweep.folder.spool) as log:
        log.text(report, "report.md")
        log.tags({NOTE_TAG: report})
        log.metrics(values, len(summary.trials) + len(summary.repeats))
        for key, picture in sweep_figures(summary.trials, list(sweep.recipe.sweep.space), METRIC).items():
            log.picture(f"sweep/{key}", picture)

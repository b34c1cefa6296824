"""The search of a sweep from its first trial to its report; what of it MLflow and the screen are told."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from d2ls import storage
from d2ls.errors import TrainingError
from pipeline.config import Recipe
from pipeline.training import tracked_run
from pipeline.training.run_folder import RunFolder
from pipeline.tuning.plan import Plan
from pipeline.tuning.records import TrialRecords
from pipeline.tuning.report import METRIC, SEED, SweepSummary, Trial
from pipeline.tuning.searcher import ListedSearch, Search, make_search
from pipeline.tuning.space import Values, describe, trial_recipe
from pipeline.tuning.trials import TrialEvents, halving, run_trials

if TYPE_CHECKING:
    from rich.console import Console

    from d2ls.shards import ShardSet
    from pipeline.cluster import Cluster
    from pipeline.tracking import Store
    from pipeline.tuning.trial_process import TrialContext


@dataclass(frozen=True)
class Sweep:
    """A sweep under way.

    Attributes:
        name: of the sweep.
        recipe: its recipe, all locations absolute.
        repeat: seeds of the best configuration, in all.
        store: MLflow store.
        run_id: its own MLflow run.
        shards: the shard set.
        cluster: what it runs on.
        console: where it writes.
    """

    name: str
    recipe: Recipe
    repeat: int
    store: "Store"
    run_id: str
    shards: "ShardSet"
    cluster: "Cluster"
    console: "Console"

    @property
    def folder(self) -> str:
        """Folder of the sweep below the recipe's storage."""
        return self.place.uri

    @property
    def place(self) -> RunFolder:
        """That folder, with the facts that lead to its MLflow run."""
        return RunFolder.of(self.recipe.output_dir, self.name)

    def place_of(self, trial: Trial) -> RunFolder:
        """Run folder of a trial."""
        return RunFolder.of(self.recipe.output_dir, trial.name)


def search(sweep: Sweep, plan: Plan, context: "TrialContext") -> SweepSummary:
    """Runs the trials that are left, then the best one with further seeds, and reports.

    Raises:
        TrainingError: no trial has a score.
    """
    from pipeline.console import heading

    records = TrialRecords.load(storage.join(sweep.folder, "trials"))
    rule = halving(sweep.recipe)
    for trial in rule.overdue(records.searched(sweep.recipe).values()) if rule else ():
        _end_run(sweep, records.save(replace(trial, status="pruned")))
    found = make_search(sweep.recipe, records)
    heading(sweep.console, f"trials ({found.left} of {plan.trials} to run)")
    concurrent = plan.concurrent or 1
    _run_trials(sweep, found, records, context, concurrent=concurrent)
    epochs = trial_recipe(sweep.recipe, {}).train.epochs
    summary = SweepSummary(sweep.name, list(records.searched(sweep.recipe).values()), epochs)
    if summary.best is None:
        raise TrainingError(_why_none(sweep, summary))
    if sweep.repeat > 1:
        repeats = _repeat(sweep, summary.best.values, records, context, concurrent)
        summary = replace(summary, repeats=repeats)
    _report(sweep, summary)
    return summary


def _repeat(
    sweep: Sweep, best: Mapping[str, Any], records: TrialRecords, context: "TrialContext", concurrent: int
) -> list[Trial]:
    """Trains the best configuration with further seeds; returns these trials."""
    from pipeline.console import heading

    seeds = [sweep.recipe.seed + offset for offset in range(1, sweep.repeat)]
    again: list[Values] = [{**best, SEED: seed} for seed in seeds]
    heading(sweep.console, f"repeats of {describe(best)} with seeds {seeds}")
    left = ListedSearch(values for values in again if not records.ended(values))
    _run_trials(sweep, left, records, context, concurrent=concurrent, prune=False)
    return [trial for values in again if (trial := records.get(values))]


def _run_trials(
    sweep: Sweep,
    found: Search,
    records: TrialRecords,
    context: "TrialContext",
    *,
    concurrent: int,
    prune: bool = True,
) -> None:
    """Runs what a search proposes, shows how it goes, and opens and ends the trials' MLflow runs."""
    from pipeline.tuning.display import SweepProgress

    if not found.left:
        return

    def running() -> list[tuple[Trial, dict[str, Any]]]:
        started = [trial for trial in list(records.trials.values()) if trial.status == "started"]
        return [(trial, sweep.place_of(trial).latest()) for trial in started]

    epochs = trial_recipe(sweep.recipe, {}).train.epochs
    before = {trial.key: trial.epoch for trial in records.trials.values() if not trial.ended}
    with SweepProgress(sweep.console, found.left, epochs, running, before) as progress:

        def told(trial: Trial, event: str) -> None:
            progress(trial, event)
            if event != "epoch":
                _end_run(sweep, trial)

        events = TrialEvents(records, begun=lambda trial: _open_run(sweep, trial), told=told)
        run_trials(
            sweep.name, sweep.recipe, found, context, events, concurrent=concurrent, prune=prune,
            gpus=sweep.cluster.per_worker(trial_recipe(sweep.recipe, {}).cluster).get("GPU", 0.0),
        )  # fmt: skip


def _open_run(sweep: Sweep, trial: Trial) -> str:
    """Opens the MLflow run of a trial here, where MLflow is imported, so that the trial need not wait for it."""
    recipe = trial_recipe(sweep.recipe, trial.values)
    folder = sweep.place_of(trial)
    if not folder.exists():
        folder.create(recipe)
    return tracked_run.open_run(sweep.store, recipe, sweep.shards.card, folder, "trial", sweep.run_id)


def _end_run(sweep: Sweep, trial: Trial) -> None:
    """Ends the run folder of a trial where its process could not, and its MLflow run as the folder ended."""
    folder = sweep.place_of(trial)
    if trial.status == "pruned":
        folder.end("pruned", f"pruned by {sweep.recipe.sweep.scheduler} after epoch {trial.epoch}")
    elif folder.metadata().get("state") not in tracked_run.STATUS:
        folder.end(trial.status, trial.error or "")
    tracked_run.settle(sweep.store, folder)


def _why_none(sweep: Sweep, summary: SweepSummary) -> str:
    errors = {trial.error for trial in summary.trials if trial.error}
    reason = "; ".join(sorted(filter(None, errors))) or "see the lines above"
    return f"sweep {sweep.name}: no trial reached an evaluation: {reason}. Fix it and `--resume {sweep.name}`"


def _report(sweep: Sweep, summary: SweepSummary) -> None:
    """Prints and saves the report, and queues it for MLflow."""
    from pipeline.figures import sweep_figures
    from pipeline.tracking import RunWriter
    from pipeline.tracking.runs import NOTE_TAG
    from pipeline.tuning.display import show_trials

    show_trials(sweep.console, summary)
    report = summary.to_markdown()
    storage.write_bytes(storage.join(sweep.folder, "report.md"), report.encode())
    best, repeated = summary.best, summary.repeated
    assert best is not None
    assert repeated is not None
    values = {f"best/{METRIC.replace('val/', '')}": best.mean}
    if repeated.deviation is not None:
        values |= {"repeats/mean": repeated.mean, "repeats/deviation": repeated.deviation}
    with RunWriter(sweep.store.uri, sweep.run_id, sweep.place.spool) as log:
        log.text(report, "report.md")
        log.tags({NOTE_TAG: report})
        log.metrics(values, len(summary.trials) + len(summary.repeats))
        for key, picture in sweep_figures(summary.trials, list(sweep.recipe.sweep.space), METRIC).items():
            log.picture(f"sweep/{key}", picture)

"""`python -m pipeline.sweep`: search, train the best configuration, evaluate, register. Without a recipe: the demo."""

import uuid
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from d2ls import storage
from d2ls.errors import ConfigError, TrackingError, TrainingError
from pipeline.cli import add_recipe, parser, run_command
from pipeline.config import Recipe, load_recipe
from pipeline.config.recipe import FREE_ON_RESUME
from pipeline.searching.plan import Plan
from pipeline.searching.report import METRIC, SEED, SweepSummary, Trial
from pipeline.searching.space import (
    Values,
    configurations,
    describe,
    final_recipe,
    refuse_fixed,
    trial_key,
    trial_recipe,
)
from pipeline.searching.state import SweepState, names_storage, only_driver
from pipeline.searching.trials import TrialRecords
from pipeline.training import run_folder, tracked_run
from pipeline.training.run_folder import RunFolder

if TYPE_CHECKING:
    from rich.console import Console

    from d2ls.shards import ShardSet
    from pipeline.cluster import Cluster
    from pipeline.evaluate import Evaluation
    from pipeline.searching.trials import TrialContext
    from pipeline.tracking import ModelVersion, Store
    from pipeline.train import TrainResult

EXAMPLES = """\
  python -m pipeline.sweep                          the demo: makes its own data, ends with a registered model
  python -m pipeline.sweep recipes/loveda.yaml      sweep stage count and temperature as the recipe says
  python -m pipeline.sweep loveda sweep.trial.train.epochs=5 sweep.scheduler=asha
  python -m pipeline.sweep loveda 'sweep.space.train.optimizer.lr={low: 1e-5, high: 1e-3, log: true}' \\
      sweep.search=tpe sweep.trials=20              search another key as well
  python -m pipeline.sweep loveda --repeat 3        the best configuration again with three seeds in all
  python -m pipeline.sweep loveda sweep.space.seed='{values: [0, 1, 2]}'      every configuration with three seeds
  python -m pipeline.sweep loveda sweep=@recipes/sweeps/ablation.yaml         the paper's ablations and a Unet
  python -m pipeline.sweep loveda --plan            what would be tried, on what, how long it may take
  python -m pipeline.sweep --resume demo-20261122-143015-ab12
  python -m pipeline.sweep loveda --resume lo1 --repeat 3 cluster.address=ray://head:10001
"""


@dataclass(frozen=True)
class SweepResult:
    """What a sweep ends with; the later parts are None where `sweep.final` is off."""

    name: str
    summary: SweepSummary
    final: "TrainResult | None" = None
    evaluation: "Evaluation | None" = None
    version: "ModelVersion | None" = None


@dataclass(frozen=True)
class Sweep:
    """A sweep under way: its recipe (all locations absolute), its name and what it writes to."""

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
        return RunFolder.of(self.recipe.storage, self.name)


def main() -> None:
    """Parses the command line and runs the sweep."""
    arguments = parser("pipeline.sweep", __doc__.split(": ", 1)[1], EXAMPLES)
    add_recipe(arguments, default="demo")
    names = arguments.add_mutually_exclusive_group()
    names.add_argument("--name", help="name of the sweep (default: recipe, date, time)")
    names.add_argument("--resume", metavar="NAME", help="go on with a sweep that was broken off")
    names.add_argument("--plan", action="store_true", help="print the plan of a new sweep and stop")
    arguments.add_argument("--repeat", type=int, metavar="N", help="train the best one with N seeds in all")
    options = arguments.parse_args()
    # A resumed sweep has its own recipe: what is named here says where it is, and `run` looks at the changes.
    now = filter(names_storage, options.overrides) if options.resume else options.overrides
    recipe = load_recipe(options.recipe, now)
    if not options.resume:
        refuse_fixed(recipe, options.overrides)
    run(
        recipe,
        name=options.name,
        resume=options.resume,
        overrides=options.overrides,
        repeat=options.repeat,
        plan_only=options.plan,
    )


def run(
    recipe: Recipe,
    *,
    name: str | None = None,
    resume: str | None = None,
    overrides: Sequence[str] = (),
    repeat: int | None = None,
    plan_only: bool = False,
    console: "Console | None" = None,
) -> SweepResult | None:
    """Runs a sweep from raw data or shards to a registered model.

    Args:
        recipe: what to sweep; shards are made first where they are missing.
        name: name of the sweep, new; None makes one.
        resume: name of a sweep in the recipe's storage to go on with, by the recipe that it was started with.
        overrides: with `resume`: `key.sub=value` strings that change that recipe where trials stay comparable.
        repeat: seeds of the best configuration, in all; None: one, or as many as a resumed sweep had.
        plan_only: say what would be done, and stop.
        console: where to write.

    Raises:
        ConfigError: impossible plan, a name that is taken, nothing to resume, or a resumed sweep that still runs.
        ResourceError: no trial fits the machine or cluster.
        TrainingError: every trial failed.
    """
    from pipeline import cluster, demo
    from pipeline.console import make_console

    console = console or make_console()
    recipe = recipe.anchored()
    if resume:
        before = SweepState.load(recipe.storage, resume)
        recipe = before.resumed(overrides)
        repeat = before.repeat if repeat is None else repeat
    repeat = 1 if repeat is None else repeat
    if repeat < 1:
        raise ConfigError(f"--repeat {repeat}: at least 1")
    if repeat > 1 and SEED in recipe.sweep.space:
        raise ConfigError(
            f"--repeat {repeat}: sweep.space has `seed` already, so every configuration is repeated; take one out"
        )
    name = resume or name or f"{recipe.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"
    if not resume and storage.exists(storage.join(recipe.storage, name)):
        raise ConfigError(f"--name {name}: taken in {recipe.storage}. Choose another, or --resume {name}")
    chosen = configurations(recipe) if recipe.sweep.search != "tpe" else []
    if demo.is_demo(recipe):
        demo.introduce(recipe, console)
    alone = nullcontext() if plan_only else only_driver(recipe.storage, name)
    with alone, cluster.connect(recipe.cluster, dashboard=True) as connected:
        plan = Plan.make(recipe, chosen, connected.cpus, connected.gpus, repeat=repeat)
        plan.show(console)
        if plan_only:
            _show_time_of_plan(plan, connected, console)
            return None
        if demo.is_demo(recipe):
            demo.make_scenes(recipe, console)
        sweep = _open(recipe, name, repeat, connected, console)
        return _run(sweep, plan, fresh=not resume)


def _show_time_of_plan(plan: Plan, cluster: "Cluster", console: "Console") -> None:
    """Says how long a plan may take, where there are shards to find it out with."""
    from d2ls.shards import CARD_FILE, ShardSet
    from pipeline.searching.estimate import show_time

    uri = plan.trial.shards.uri
    if storage.exists(storage.join(uri, CARD_FILE)):
        show_time(console, plan, ShardSet.open(uri), cluster)
    else:
        console.print(f"Time: known when there are shards in {uri}", markup=False)


def _open(recipe: Recipe, name: str, repeat: int, cluster: "Cluster", console: "Console") -> Sweep:
    from pipeline.console import stage
    from pipeline.tracking import Store

    shards = _shards(recipe, cluster, console)
    stage(console, f"MLflow store and parent run {name}")
    store = Store.open(recipe.tracking)
    recipe = recipe.with_values({"tracking.uri": store.uri})
    SweepState(name, recipe.to_dict(), repeat).save()
    folder = RunFolder.of(recipe.storage, name)
    folder.note(name=name, kind="sweep")
    folder.claim()
    run_id = tracked_run.open_run(store, recipe, shards.card, folder, "sweep")
    return Sweep(name, recipe, repeat, store, run_id, shards, cluster, console)


def _shards(recipe: Recipe, cluster: "Cluster", console: "Console") -> "ShardSet":
    """Opens the shards; makes them first, or what is missing of them, where the raw data are at hand."""
    from d2ls.shards import ShardSet
    from pipeline import shard
    from pipeline.console import stage
    from pipeline.shard_report import print_summary, progress_bar

    if storage.exists(recipe.data.root):
        stage(console, f"shards in {recipe.shards.uri}")
        # Raw data on this machine's disk cannot be read by tasks on other nodes.
        inline = storage.is_local(recipe.data.root) and cluster.nodes > 1
        with progress_bar(f"sharding {recipe.name}") as advance:
            card = shard.run(recipe, progress=advance, inline=inline)
        print_summary(card, recipe.shards.uri)
    shards = ShardSet.open(recipe.shards.uri)
    for split in (recipe.roles.train, recipe.roles.select, recipe.roles.report):
        shards.rows(split)
    return shards


def _run(sweep: Sweep, plan: Plan, *, fresh: bool) -> SweepResult:
    from pipeline.searching.estimate import show_time

    try:
        with tracked_run.ended(sweep.place, last=True):
            if fresh:
                show_time(sweep.console, plan, sweep.shards, sweep.cluster)
            summary = _search(sweep, plan.chosen, plan.concurrent)
            if not sweep.recipe.sweep.final:
                return SweepResult(sweep.name, summary)
            return _finish(sweep, summary)
    except KeyboardInterrupt:
        sweep.console.print(f"Interrupted. Go on with: python -m pipeline.sweep --resume {sweep.name}")
        raise
    finally:
        _settle(sweep)


def _settle(sweep: Sweep) -> None:
    """Tells MLflow what it has not heard of the sweep and its trials; where it is away, the folders keep it."""
    trials = TrialRecords(storage.join(sweep.folder, "trials")).all()
    try:
        for folder in [*(RunFolder.of(sweep.recipe.storage, trial.name) for trial in trials), sweep.place]:
            if folder.facts().get("state") == run_folder.RUNNING:  # its process died with Tune's
                folder.end(run_folder.KILLED)
            tracked_run.settle(sweep.store, folder)
    except TrackingError as error:
        sweep.console.print(
            f"{error}. `python -m pipeline.doctor` sends what waits and closes the runs", markup=False
        )


def _search(sweep: Sweep, chosen: Sequence[Values], concurrent: int) -> SweepSummary:
    from pipeline.console import stage
    from pipeline.searching.trials import TrialContext

    records = TrialRecords(storage.join(sweep.folder, "trials"))
    context = TrialContext(sweep.name, sweep.recipe.to_dict(), sweep.run_id, records)
    known = {trial.key: trial for trial in records.searched(sweep.recipe)}
    if sweep.recipe.sweep.search == "tpe":
        pending = [dict(trial.values) for trial in known.values() if not _ended(trial)]
        total = sweep.recipe.sweep.trials or 1
        left = max(total - sum(map(_ended, known.values())), 0)
    else:
        pending = [v for v in chosen if not _ended(known.get(trial_key(v)))]
        total, left = len(chosen), len(pending)
    stage(sweep.console, f"trials ({left} of {total} to run)")
    epochs = trial_recipe(sweep.recipe, {}).train.epochs
    if left:
        _run_trials(sweep, pending, context, trials=left, concurrent=concurrent)
        # Once more: a dying trial may have called its end a failure.
        for trial in records.searched(sweep.recipe):
            if trial.status == "pruned":
                _end_pruned(sweep, trial)
    summary = SweepSummary(sweep.name, records.searched(sweep.recipe), epochs)
    if summary.best is None:
        raise TrainingError(_why_none(sweep, summary))
    if sweep.repeat > 1:
        summary = replace(summary, repeats=_repeat(sweep, summary.best.values, context, concurrent))
    _report(sweep, summary)
    return summary


def _run_trials(
    sweep: Sweep,
    pending: Sequence[Values],
    context: "TrialContext",
    *,
    trials: int,
    concurrent: int,
    listed: bool = False,
) -> None:
    """Runs trials and shows how they get on; also ends the MLflow runs of pruned ones, whose processes have no time."""
    from pipeline.searching.progress import SweepProgress
    from pipeline.searching.trials import run_trials

    def started() -> list[Trial]:
        return [trial for trial in context.records.all() if trial.status == "started"]

    def running() -> list[tuple[Trial, dict[str, Any]]]:
        return [(trial, RunFolder.of(sweep.recipe.storage, trial.name).latest()) for trial in started()]

    epochs = trial_recipe(sweep.recipe, {}).train.epochs
    before = {trial.key: trial.epoch for trial in started()}
    with SweepProgress(sweep.console, trials, epochs, running, before) as progress:

        def tell(trial: Trial, event: str) -> None:
            progress(trial, event)
            if event == "pruned":
                _end_pruned(sweep, trial)

        run_trials(sweep.recipe, pending, context, concurrent=concurrent, on_progress=tell, listed=listed)


def _end_pruned(sweep: Sweep, trial: Trial) -> None:
    folder = RunFolder.of(sweep.recipe.storage, trial.name)
    words = f"pruned by {sweep.recipe.sweep.scheduler} after epoch {trial.epoch}"
    folder.note(state=run_folder.PRUNED, reason=words)
    with suppress(TrackingError):  # told at the sweep's end
        tracked_run.settle(sweep.store, folder)


def _ended(trial: Trial | None) -> bool:
    return trial is not None and trial.status in ("finished", "pruned")


def _why_none(sweep: Sweep, summary: SweepSummary) -> str:
    errors = {trial.error for trial in summary.trials if trial.error}
    reason = "; ".join(sorted(filter(None, errors))) or "see the lines above"
    return (
        f"sweep {sweep.name}: no trial reached an evaluation: {reason}. Mend it and `--resume {sweep.name}`"
    )


def _repeat(sweep: Sweep, best: Mapping[str, Any], context: "TrialContext", concurrent: int) -> list[Trial]:
    """Trains the best configuration with further seeds; returns these trials."""
    from pipeline.console import stage

    seeds = [sweep.recipe.seed + offset for offset in range(1, sweep.repeat)]
    again: list[Values] = [{**best, SEED: seed} for seed in seeds]
    stage(sweep.console, f"repeats of {describe(best)} with seeds {seeds}")
    left = [values for values in again if not _ended(context.records.load(trial_key(values)))]
    if left:
        _run_trials(sweep, left, context, trials=len(left), concurrent=concurrent, listed=True)
    return [trial for values in again if (trial := context.records.load(trial_key(values)))]


def _report(sweep: Sweep, summary: SweepSummary) -> None:
    from pipeline.console import show_trials
    from pipeline.figures import sweep_figures
    from pipeline.tracking import RunWriter
    from pipeline.tracking.runs import NOTE_TAG

    show_trials(sweep.console, summary)
    report = summary.to_markdown()
    storage.write_bytes(storage.join(sweep.folder, "report.md"), report.encode())
    best, repeated = summary.best, summary.repeated
    assert best is not None
    assert repeated is not None
    values = {f"best/{METRIC.replace('select/', '')}": best.mean}
    if repeated.deviation is not None:
        values |= {"repeats/mean": repeated.mean, "repeats/deviation": repeated.deviation}
    with RunWriter(sweep.store.uri, sweep.run_id, sweep.place.spool) as log:
        log.text(report, "report.md")
        log.tags({NOTE_TAG: report})
        log.metrics(values, len(summary.trials) + len(summary.repeats))
        for key, picture in sweep_figures(summary.trials, list(sweep.recipe.sweep.space), METRIC).items():
            log.picture(f"sweep/{key}", picture)


def _finish(sweep: Sweep, summary: SweepSummary) -> SweepResult:
    """Trains the best configuration at full length, evaluates on the report split, registers."""
    from pipeline import train
    from pipeline.champion import crown
    from pipeline.console import show_evaluation, show_next, stage
    from pipeline.evaluate import evaluate_report

    best = summary.best
    assert best is not None
    recipe = final_recipe(sweep.recipe, best.values)
    name = _final_name(sweep, recipe, best.values)
    stage(sweep.console, f"final training: {describe(best.values)}, {recipe.train.epochs} epochs")
    trained = train.run(recipe, name=name, resume="auto", parent_run_id=sweep.run_id)
    split = recipe.roles.report
    stage(sweep.console, f"evaluation on {split!r}, which selected nothing")
    workers = None if sweep.cluster.own else recipe.cluster
    evaluation = evaluate_report(recipe, trained.best_checkpoint, cluster=workers)
    evaluation = replace(evaluation, model=f"{trained.name}, epoch {trained.best_epoch}")
    show_evaluation(sweep.console, evaluation)
    stage(sweep.console, f"registry: {recipe.model_name}")
    version = crown(
        sweep.store, trained, evaluation, recipe, sweep.shards.card, sweep.console, cluster=workers
    )
    show_next(sweep.console, sweep.store, recipe, version, sweep.name)
    return SweepResult(sweep.name, summary, trained, evaluation, version)


def _final_name(sweep: Sweep, recipe: Recipe, best: Mapping[str, Any]) -> str:
    """`<sweep>-final`; where more trials made another configuration the best one, its key is added."""
    name = f"{sweep.name}-final"
    folder = RunFolder.of(recipe.storage, name)
    other = folder.exists() and recipe.changes_since(folder.recipe(), free=(*FREE_ON_RESUME, "sweep."))
    return f"{name}-{trial_key(best)}" if other else name


if __name__ == "__main__":
    run_command(main)

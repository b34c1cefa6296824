"""`python -m pipeline.sweep`: search, train the best configuration, evaluate, register. Without a recipe: the demo."""

import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from d2ls import storage
from d2ls.errors import ConfigError, D2LSError
from pipeline.cli import add_recipe, parser, run_command
from pipeline.config import Recipe, load_recipe
from pipeline.training import run_folder, tracked_run
from pipeline.training.run_folder import RunFolder, check_name
from pipeline.tuning.plan import Plan
from pipeline.tuning.report import SEED, SweepSummary
from pipeline.tuning.space import describe, final_recipe, refuse_fixed, trial_key, trial_recipe
from pipeline.tuning.state import SweepState, names_storage, only_driver

if TYPE_CHECKING:
    from rich.console import Console

    from d2ls.shards import ShardSet
    from pipeline.cluster import Cluster
    from pipeline.evaluation.result import Evaluation
    from pipeline.registry import ModelVersion
    from pipeline.training.run import TrainResult
    from pipeline.tuning.search import Sweep
    from pipeline.tuning.trial_process import TrainOne, TrialContext

EXAMPLES = """\
  python -m pipeline.sweep                          the demo: makes its own data, ends with a registered model
  python -m pipeline.sweep recipes/loveda.yaml      sweep stage count and temperature as the recipe says
  python -m pipeline.sweep loveda sweep.trial_overrides.train.epochs=5 sweep.scheduler=asha
  python -m pipeline.sweep loveda 'sweep.space.train.optimizer.lr={low: 1e-5, high: 1e-3, log: true}' \\
      sweep.search=tpe sweep.num_trials=20              search another key as well
  python -m pipeline.sweep loveda --seeds 3        the best configuration again with three seeds in all
  python -m pipeline.sweep loveda sweep.space.seed='{values: [0, 1, 2]}'      every configuration with three seeds
  python -m pipeline.sweep loveda sweep=@recipes/sweeps/ablation.yaml         the paper's ablations and a Unet
  python -m pipeline.sweep loveda --plan            what would be tried, on what, how long it may take
  python -m pipeline.sweep --resume demo-20261122-143015-ab12
  python -m pipeline.sweep loveda --resume lo1 --seeds 3 cluster.address=ray://head:10001
"""


@dataclass(frozen=True)
class SweepResult:
    """What a sweep ends with; the later parts are None where `sweep.final` is off."""

    name: str
    summary: SweepSummary
    final: "TrainResult | None" = None
    evaluation: "Evaluation | None" = None
    version: "ModelVersion | None" = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and runs the sweep."""
    command = parser("pipeline.sweep", __doc__.split(": ", 1)[1], EXAMPLES)
    add_recipe(command, default="demo")
    names = command.add_mutually_exclusive_group()
    names.add_argument("--name", help="name of the sweep (default: recipe, date, time)")
    names.add_argument("--resume", metavar="NAME", help="go on with a sweep that was broken off")
    names.add_argument("--plan", action="store_true", help="print the plan of a new sweep and stop")
    command.add_argument("--seeds", type=int, metavar="N", help="train the best one with N seeds in all")
    given = command.parse_args(arguments)
    for option in ("name", "resume"):
        if getattr(given, option) is not None:
            check_name(getattr(given, option), f"--{option}")
    # A resumed sweep has its own recipe: what is named here says where it is, and `run` looks at the changes.
    now = filter(names_storage, given.overrides) if given.resume else given.overrides
    recipe = load_recipe(given.recipe, now)
    if not given.resume:
        refuse_fixed(recipe, given.overrides)
    if given.plan:
        show_plan(recipe, repeat=given.seeds)
    else:
        run(recipe, name=given.name, resume=given.resume, overrides=given.overrides, repeat=given.seeds)


def show_plan(recipe: Recipe, *, repeat: int | None = None, console: "Console | None" = None) -> None:
    """Prints what a new sweep would do. Nothing is started, joined or written.

    Raises:
        ConfigError: the space cannot be searched.
        ResourceError: no trial fits this machine.
    """
    from pipeline import cluster
    from pipeline.console import make_console

    machine = None if cluster.address_of(recipe.cluster) else cluster.this_machine()
    Plan.make(recipe.anchored(), machine, repeat=_seeds(recipe, repeat)).show(console or make_console())


def run(
    recipe: Recipe,
    *,
    name: str | None = None,
    resume: str | None = None,
    overrides: Sequence[str] = (),
    repeat: int | None = None,
    console: "Console | None" = None,
    train_one: "TrainOne | None" = None,
) -> SweepResult:
    """Runs a sweep from raw data or shards to a registered model.

    Args:
        recipe: what to sweep; shards are made first where they are missing.
        name: name of the sweep, new; None makes one.
        resume: name of a sweep in the recipe's storage to go on with, by the recipe that it was started with.
        overrides: with `resume`: `key.sub=value` strings that change that recipe where trials stay comparable.
        repeat: seeds of the best configuration, in all; None: one, or as many as a resumed sweep had.
        console: where to write.
        train_one: trains a trial, as `pipeline.tuning.trial_process.train_trial` does; tests put their own here.

    Raises:
        ConfigError: impossible plan, a name that is taken, nothing to resume, or a resumed sweep that still runs.
        ResourceError: no trial fits the machine or cluster.
        TrainingError: every trial failed.
    """
    from pipeline import cluster, demo
    from pipeline.console import make_console
    from pipeline.tuning.search import search

    console = console or make_console()
    recipe = recipe.anchored()
    if resume:
        check_name(resume, "--resume")
        before = SweepState.load(recipe.output_dir, resume)
        recipe = before.resumed(overrides)
        repeat = before.repeat if repeat is None else repeat
    seeds = _seeds(recipe, repeat)
    name = resume or name or f"{recipe.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"
    check_name(name, "--name")
    if not resume and storage.exists(storage.join(recipe.output_dir, name)):
        raise ConfigError(f"--name {name}: taken in {recipe.output_dir}. Choose another, or --resume {name}")
    if demo.is_demo(recipe):
        demo.introduce(recipe, console)
    _check(recipe)
    with (
        only_driver(recipe.output_dir, name),
        cluster.connect(recipe.cluster, dashboard=_groups(recipe)) as joined,
    ):
        cluster.check_shared(recipe, joined)
        plan = Plan.make(recipe, joined, repeat=seeds)
        plan.show(console)
        shards = _ensure_shards(recipe, joined, console)
        with _opened(recipe, name, seeds, shards, joined, console) as sweep:
            summary = search(sweep, plan, _context(sweep, train_one))
            if not sweep.recipe.sweep.final:
                return SweepResult(name, summary)
            trained, recipe = _train(sweep, summary)
            evaluation = _evaluate(sweep, recipe, trained)
            version = _register(sweep, recipe, trained, evaluation)
            return SweepResult(name, summary, trained, evaluation, version)


def _seeds(recipe: Recipe, repeat: int | None) -> int:
    """Checks and returns the number of seeds of the best configuration."""
    repeat = 1 if repeat is None else repeat
    if repeat < 1:
        raise ConfigError(f"--seeds {repeat}: at least 1")
    if repeat > 1 and SEED in recipe.sweep.space:
        raise ConfigError(
            f"--seeds {repeat}: sweep.space has `seed` already, so every configuration is repeated; take one out"
        )
    return repeat


def _check(recipe: Recipe) -> None:
    """Refuses, before anything is started, what would fail later: the plan, storage, shards, roles, libraries."""
    from d2ls.shards import CARD_FILE, ShardSet
    from pipeline import checks, cluster, demo

    Plan.make(recipe, None if cluster.address_of(recipe.cluster) else cluster.this_machine())
    if storage.exists(storage.join(recipe.shards.uri, CARD_FILE)):
        checks.quick(recipe)
        return
    checks.check_architecture(recipe)
    checks.check_storage(recipe.output_dir)
    if not demo.is_demo(recipe) and not storage.exists(recipe.data.root):
        ShardSet.open(recipe.shards.uri)  # says that it is missing


def _groups(recipe: Recipe) -> bool:
    """Returns whether trials have several workers; Ray frees what a pruned one held through its dashboard."""
    return trial_recipe(recipe, {}).cluster.worker_range != (1, 1)


def _ensure_shards(recipe: Recipe, cluster: "Cluster", console: "Console") -> "ShardSet":
    """Opens the shards; makes them first, or what is missing of them, where the raw data are at hand."""
    from d2ls.shards import ShardSet
    from pipeline import checks, demo
    from pipeline.console import ProgressDisplay, heading
    from pipeline.sharding.report import print_summary, progress_of
    from pipeline.sharding.run import ensure_shards

    if demo.is_demo(recipe):
        demo.make_scenes(recipe, console)
    if storage.exists(recipe.data.root):
        heading(console, f"shards in {recipe.shards.uri}")
        # Raw data on this machine's disk cannot be read by tasks on other nodes.
        inline = storage.is_local(recipe.data.root) and cluster.nodes > 1
        with ProgressDisplay(f"sharding {recipe.name}") as display:
            card = ensure_shards(recipe, progress=progress_of(display), inline=inline)
        print_summary(card, recipe.shards.uri)
    shards = ShardSet.open(recipe.shards.uri)
    checks.check_roles(recipe, shards)
    return shards


@contextmanager
def _opened(
    recipe: Recipe, name: str, repeat: int, shards: "ShardSet", cluster: "Cluster", console: "Console"
) -> Iterator["Sweep"]:
    """Opens the sweep's MLflow run and notes what `--resume` needs; ends the run as the sweep ends."""
    from pipeline.console import heading
    from pipeline.tracking import Store
    from pipeline.tuning.search import Sweep

    heading(console, f"MLflow store and parent run {name}")
    store = Store.open(recipe.tracking)
    recipe = recipe.with_values({"tracking.uri": store.uri})
    SweepState(name, recipe.to_dict(), repeat).save()
    folder = RunFolder.of(recipe.output_dir, name)
    folder.update(name=name, kind="sweep")
    folder.claim()
    run_id = tracked_run.open_run(store, recipe, shards.card, folder, "sweep")
    sweep = Sweep(name, recipe, repeat, store, run_id, shards, cluster, console)
    try:
        with tracked_run.ended(folder, last=True):
            yield sweep
    except KeyboardInterrupt:
        console.print(f"Interrupted. Go on with: python -m pipeline.sweep --resume {name}")
        raise
    finally:
        _settle(sweep)


def _settle(sweep: "Sweep") -> None:
    """Tells MLflow what it has not heard of the sweep and its trials; where it is away, the folders keep it."""
    from pipeline.tracking.connection import UnreachableError
    from pipeline.tuning.records import TrialRecords

    folders = [sweep.place]
    with suppress(D2LSError):  # a damaged record: the sweep itself has said so
        trials = TrialRecords.load(storage.join(sweep.folder, "trials")).trials.values()
        folders = [*map(sweep.place_of, trials), sweep.place]
    for folder in folders:
        try:
            if folder.metadata().get("state") == run_folder.RUNNING:  # its process died with Tune's
                folder.end(run_folder.KILLED)
            tracked_run.settle(sweep.store, folder)
        except D2LSError as error:  # it must not hide what ended the sweep
            logging.getLogger(__name__).warning(
                "%s. `python -m pipeline.doctor` sends what waits and closes the runs", error
            )
            if isinstance(error, UnreachableError):
                return


def _context(sweep: "Sweep", train_one: "TrainOne | None") -> "TrialContext":
    from pipeline.tuning.trial_process import TrialContext, train_trial

    return TrialContext(sweep.recipe.to_dict(), sweep.run_id, train_one or train_trial)


def _train(sweep: "Sweep", summary: SweepSummary) -> "tuple[TrainResult, Recipe]":
    """Trains the best configuration at full length; returns its recipe too."""
    from pipeline.console import heading
    from pipeline.training.run import TrainRequest, train

    best = summary.best
    assert best is not None
    recipe = final_recipe(sweep.recipe, best.values)
    heading(sweep.console, f"final training: {describe(best.values)}, {recipe.train.epochs} epochs")
    request = TrainRequest(
        recipe,
        name=_final_name(sweep, recipe, best.values),
        resume="auto",
        parent_run_id=sweep.run_id,
        in_process=sweep.cluster.started_here and recipe.cluster.worker_range == (1, 1),
    )
    return train(request), recipe


def _final_name(sweep: "Sweep", recipe: Recipe, best: Mapping[str, Any]) -> str:
    """`<sweep>-final`; where more trials made another configuration the best one, its key is added."""
    name = f"{sweep.name}-final"
    folder = RunFolder.of(recipe.output_dir, name)
    other = folder.exists() and recipe.changes_since(folder.recipe(), resuming="training")
    return f"{name}-{trial_key(best)}" if other else name


def _evaluate(sweep: "Sweep", recipe: Recipe, trained: "TrainResult") -> "Evaluation":
    """Scores the trained network on the test split."""
    from pipeline.console import heading
    from pipeline.evaluation import report
    from pipeline.evaluation.run import evaluate_recipe

    heading(sweep.console, f"evaluation on {recipe.roles.test!r}, which selected nothing")
    evaluation = evaluate_recipe(recipe, trained.best_checkpoint, cluster=_scoring(sweep, recipe))
    evaluation = replace(evaluation, model=f"{trained.name}, epoch {trained.best_epoch}")
    report.show(sweep.console, [evaluation])
    return evaluation


def _register(
    sweep: "Sweep", recipe: Recipe, trained: "TrainResult", evaluation: "Evaluation"
) -> "ModelVersion":
    """Registers the trained network, and says what to do next."""
    from pipeline.console import heading
    from pipeline.evaluation.run import evaluate_recipe
    from pipeline.registry.promotion import register_and_promote
    from pipeline.tuning.display import show_next

    def evaluate(model: str) -> dict[str, Any]:
        cluster = _scoring(sweep, recipe)
        return evaluate_recipe(
            recipe, model, cluster=cluster, bootstrap=0, tracking_uri=sweep.store.uri
        ).to_dict()

    heading(sweep.console, f"registry: {recipe.model_name}")
    decision = register_and_promote(
        sweep.store,
        trained.run_id,
        trained.best_checkpoint,
        recipe,
        sweep.shards.card,
        evaluation.to_dict(),
        evaluate,
    )
    version = decision.version
    sweep.console.print(f"  {version.uri} registered, alias challenger\n  {decision}")
    show_next(sweep.console, sweep.store, recipe, version, sweep.name)
    return version


def _scoring(sweep: "Sweep", recipe: Recipe) -> Any:
    """The recipe's Ray workers, to score on where the sweep joined a cluster; None: this process scores."""
    return None if sweep.cluster.started_here else recipe.cluster


if __name__ == "__main__":
    run_command(main)

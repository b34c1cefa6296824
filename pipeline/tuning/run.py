"""A sweep from raw data or shards to a registered model."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from d2ls import storage
from d2ls.errors import ConfigError
from d2ls.shards import CARD_FILE, ShardSet
from pipeline import checks, cluster, demo
from pipeline.cluster import Cluster
from pipeline.config import Recipe
from pipeline.config.train import ClusterConfig
from pipeline.console import ProgressDisplay, heading, make_console
from pipeline.evaluation import report
from pipeline.evaluation.result import Evaluation
from pipeline.evaluation.run import evaluate_recipe
from pipeline.registry import ModelVersion
from pipeline.registry.promotion import register_and_promote
from pipeline.sharding.report import print_summary, progress_of
from pipeline.sharding.run import ensure_shards as make_shards
from pipeline.training.run import TrainRequest, TrainResult
from pipeline.training.run import train as train_network
from pipeline.training.run_folder import RunFolder, check_name
from pipeline.tuning.display import show_next
from pipeline.tuning.plan import Plan, check_seeds
from pipeline.tuning.report import Configuration, SweepSummary
from pipeline.tuning.search_stage import search
from pipeline.tuning.space import base_recipe, describe, final_recipe, trial_key, trial_recipe
from pipeline.tuning.state import SweepState, only_driver
from pipeline.tuning.sweep import Sweep, open_sweep
from pipeline.tuning.trial_process import TrainTrial, train_trial


@dataclass(frozen=True)
class SweepRequest:
    """The request for a sweep.

    Attributes:
        recipe: what to sweep; shards are made first if they are missing.
        name: name of a new sweep; None generates one.
        resume: name of a sweep below the recipe's `output_dir` to continue; it has its own recipe.
        overrides: with `resume`: `key.sub=value` strings that change its recipe, if the trials stay comparable.
        seeds: number of seeds with which the best configuration is trained; None: one, or as before with `resume`.
        train_trial: trains a trial; tests pass their own.
    """

    recipe: Recipe
    name: str | None = None
    resume: str | None = None
    overrides: tuple[str, ...] = ()
    seeds: int | None = None
    train_trial: TrainTrial = train_trial


@dataclass(frozen=True)
class SweepResult:
    """Results of a sweep; the later ones are None if `sweep.final` is off."""

    name: str
    summary: SweepSummary
    final: TrainResult | None = None
    evaluation: Evaluation | None = None
    version: ModelVersion | None = None


def sweep(request: SweepRequest, *, console: Console | None = None) -> SweepResult:
    """Runs a sweep.

    Args:
        request: what to sweep.
        console: where to print; None: standard output.

    Raises:
        ConfigError: an impossible plan, a name that is taken, nothing to resume, or a sweep that is running already.
        ResourceError: no trial fits the machine or cluster.
        TrainingError: every trial failed.
    """
    console = console or make_console()
    name, recipe, seeds = _prepare(request)
    if demo.is_demo(recipe):
        demo.introduce(recipe, console)
    _check(recipe)
    # Ray frees the resources of a pruned trial with several workers through its dashboard.
    dashboard = trial_recipe(recipe, {}).cluster.worker_range != (1, 1)
    with (
        only_driver(recipe.output_dir, name),
        cluster.connect(recipe.cluster, dashboard=dashboard) as machines,
    ):
        cluster.check_shared(recipe, machines)
        plan = Plan.make(recipe, machines, seeds=seeds)
        plan.show(console)
        shards = ensure_shards(recipe, machines, console)
        with open_sweep(name, recipe, seeds, shards, machines, console) as opened:
            summary, best = search(opened, plan, request.train_trial)
            if not opened.recipe.sweep.final:
                return SweepResult(name, summary)
            recipe = final_recipe(opened.recipe, best.values)
            trained = train(opened, recipe, best)
            evaluation = evaluate(opened, recipe, trained)
            version = register(opened, recipe, trained, evaluation)
            return SweepResult(name, summary, trained, evaluation, version)


def _prepare(request: SweepRequest) -> tuple[str, Recipe, int]:
    """Returns name, recipe and number of seeds of the sweep; refuses a name that is taken."""
    recipe, seeds = request.recipe.anchored(), request.seeds
    if request.resume:
        check_name(request.resume, "--resume")
        state = SweepState.load(recipe.output_dir, request.resume)
        recipe = state.resumed(request.overrides)
        return request.resume, recipe, check_seeds(recipe, state.seeds if seeds is None else seeds)
    name = request.name or f"{recipe.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"
    check_name(name, "--name")
    if storage.exists(storage.join(recipe.output_dir, name)):
        raise ConfigError(f"--name {name}: taken in {recipe.output_dir}. Choose another, or --resume {name}")
    return name, recipe, check_seeds(recipe, 1 if seeds is None else seeds)


def _check(recipe: Recipe) -> None:
    """Checks plan, networks, output_dir, shards and roles before anything is started."""
    plan = Plan.make(recipe, None if cluster.address_of(recipe.cluster) else cluster.this_machine())
    backbones = recipe.sweep.space.get("model.backbone")
    listed = [{"model.backbone": name} for name in backbones.values or ()] if backbones else [{}]
    trials = [trial_recipe(recipe, values) for values in plan.chosen or listed]  # tpe has chosen none yet
    networks = {
        (t.model.architecture, t.model.backbone, t.model.weights, t.model.pretrained, t.model.init): t
        for t in trials
    }
    for trial in networks.values():
        checks.check_backbone(trial)
    checks.check_storage(recipe.output_dir)
    if storage.exists(storage.join(recipe.shards.uri, CARD_FILE)):
        checks.check_shards(recipe)
    elif not demo.is_demo(recipe) and not storage.exists(recipe.data.root):
        ShardSet.open(recipe.shards.uri)  # raises the error for missing shards


def ensure_shards(recipe: Recipe, machines: Cluster, console: Console) -> ShardSet:
    """Opens the shards of a recipe; makes missing ones first if the raw data is there."""
    if demo.is_demo(recipe):
        demo.make_scenes(recipe, console)
    if storage.exists(recipe.data.root):
        heading(console, f"shards in {recipe.shards.uri}")
        # Tasks on other nodes cannot read raw data on the disk of this machine.
        no_ray = storage.is_local(recipe.data.root) and machines.nodes > 1
        with ProgressDisplay(f"sharding {recipe.name}") as display:
            card = make_shards(recipe, progress=progress_of(display), no_ray=no_ray)
        print_summary(card, recipe.shards.uri)
    shards = ShardSet.open(recipe.shards.uri)
    checks.check_roles(recipe, shards)
    base, axis = base_recipe(recipe), recipe.sweep.space.get("loss.class_weights")
    for choice in axis.values or () if axis else (base.loss.class_weights,):
        checks.check_class_weights(base.with_values({"loss.class_weights": choice}), shards)
    return shards


def train(sweep: Sweep, recipe: Recipe, best: Configuration) -> TrainResult:
    """Trains the best configuration at full length.

    Args:
        sweep: the sweep.
        recipe: recipe of the final training.
        best: the configuration.
    """
    heading(sweep.console, f"final training: {describe(best.values)}, {recipe.train.length}")
    request = TrainRequest(
        recipe,
        name=_final_name(sweep, recipe, best.values),
        resume="auto",
        parent_run_id=sweep.run_id,
        in_process=sweep.cluster.started_here and recipe.cluster.worker_range == (1, 1),
    )
    return train_network(request)


def _final_name(sweep: Sweep, recipe: Recipe, best: Mapping[str, Any]) -> str:
    """Returns `<sweep>-final`, with the key of the configuration if another configuration has that name already."""
    name = f"{sweep.name}-final"
    folder = RunFolder.of(recipe.output_dir, name)
    other = folder.exists() and recipe.changes_since(folder.recipe(), resuming="training")
    return f"{name}-{trial_key(best)}" if other else name


def evaluate(sweep: Sweep, recipe: Recipe, trained: TrainResult) -> Evaluation:
    """Fits the temperature on the val split, scores the trained network on the test split and prints the scores."""
    heading(sweep.console, f"evaluation on {recipe.roles.test!r}, which selected nothing")
    evaluation = evaluate_recipe(
        recipe, trained.best_checkpoint, cluster=_scoring_cluster(sweep, recipe), calibrate=True
    )
    evaluation = replace(evaluation, model=f"{trained.name}, epoch {trained.best_epoch}")
    report.show(sweep.console, [evaluation])
    return evaluation


def register(sweep: Sweep, recipe: Recipe, trained: TrainResult, evaluation: Evaluation) -> ModelVersion:
    """Registers the trained network and prints the commands that come next."""
    heading(sweep.console, f"registry: {recipe.model_name}")

    def score(model: str) -> dict[str, Any]:
        return evaluate_recipe(
            recipe, model, cluster=_scoring_cluster(sweep, recipe), bootstrap=0, tracking_uri=sweep.store.uri
        ).to_dict()

    decision = register_and_promote(
        sweep.store,
        trained.run_id,
        trained.best_checkpoint,
        recipe,
        sweep.shards.card,
        evaluation.to_dict(),
        score,
    )
    version = decision.version
    sweep.console.print(f"  {version.uri} registered, alias challenger\n  {decision}")
    show_next(sweep.console, sweep.store, recipe, version, sweep.name, sweep.seeds)
    return version


def _scoring_cluster(sweep: Sweep, recipe: Recipe) -> ClusterConfig | None:
    """Returns the Ray workers to score on if the sweep joined a cluster; None scores in this process."""
    return None if sweep.cluster.started_here else recipe.cluster

"""`python -m pipeline.train RECIPE`: trains a network on Ray workers, resumable by name."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from d2ls import errors
from d2ls.errors import TrainingError
from pipeline import cli
from pipeline.config import Recipe, load_recipe
from pipeline.config.recipe import FREE_ON_RESUME
from pipeline.training import run_folder, tracked_run
from pipeline.training.run_folder import RunFolder

if TYPE_CHECKING:
    from d2ls.shards import ShardSet
    from pipeline.cluster import Cluster
    from pipeline.training.worker import Job

EXAMPLES = """\
  python -m pipeline.train demo                          # a recipe that comes with the project
  python -m pipeline.train my.yaml train.epochs=10       # with a key changed
  python -m pipeline.train loveda --name first-try       # named by you
  python -m pipeline.train loveda --resume first-try     # goes on where it stopped
  python -m pipeline.train loveda cluster.workers=4 cluster.address=auto   # on a running Ray cluster
"""

Resume = bool | Literal["auto"]


@dataclass(frozen=True)
class TrainResult:
    """A finished training run.

    Attributes:
        name: name of the run.
        run_id: MLflow run; empty where nothing was tracked.
        folder_uri: its folder.
        best_checkpoint: checkpoint with the best selection score; a model bundle.
        last_checkpoint: checkpoint of the last step.
        best_epoch: epoch of the best one, counted from 1.
        best_scores: flat metrics of that epoch.
        last_scores: flat metrics of the last epoch.
        history: flat metrics of all epochs.
    """

    name: str
    run_id: str
    folder_uri: str
    best_checkpoint: str
    last_checkpoint: str
    best_epoch: int
    best_scores: dict[str, float]
    last_scores: dict[str, float]
    history: list[dict[str, float]] = field(default_factory=list)


def run(
    recipe: Recipe,
    *,
    name: str | None = None,
    resume: Resume = False,
    parent_run_id: str | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    quiet: bool = False,
    track: bool = True,
    profile: bool = False,
) -> TrainResult:
    """Trains a network as a recipe says.

    Args:
        recipe: the run configuration.
        name: name of the run, new unless it is resumed; None makes one up.
        resume: go on with the run of this name. `auto`: if there is one, else start it; a finished one is returned.
        parent_run_id: MLflow run of the sweep that this is a trial of.
        on_epoch: called in this process with the flat metrics of every new epoch.
        quiet: show nothing.
        track: log to MLflow.
        profile: write a trace of some steps into the run folder.

    Raises:
        ConfigError: the name is taken, or there is nothing to resume.
        ResourceError: the cluster cannot give what the recipe asks for.
        TrainingError: training cannot go on.
    """
    from d2ls.shards import ShardSet
    from pipeline import cluster, doctor
    from pipeline.training.worker import Job

    recipe = recipe.anchored()
    name = name or run_folder.new_name(recipe)
    folder = RunFolder.of(recipe.storage, name)
    started = folder.exists()
    if resume == "auto" and started and folder.facts().get("state") == run_folder.FINISHED:
        return result(folder)
    fresh = resume is False or (resume == "auto" and not started)
    if fresh:
        folder.check_free()
    else:
        _check_resume(recipe, folder)
    doctor.quick(recipe)
    shards = ShardSet.open(recipe.shards.uri)
    with cluster.connect(recipe.cluster) as ray_cluster:
        cluster.check_resources(recipe, ray_cluster)
        if fresh:
            folder.create(recipe)
        folder.claim()
        with _tracked(recipe, shards, folder, parent_run_id, track) as (store, run_id):
            view = _view(name, recipe, shards, ray_cluster, quiet)
            with view:
                job = Job(
                    recipe=recipe.to_dict(),
                    folder=folder.uri,
                    name=name,
                    shards=shards.uri,
                    store=store,
                    run_id=run_id,
                    cpus=recipe.cluster.cpus_per_worker,
                    profile=profile,
                )
                _fit(job, recipe, folder, ray_cluster, view, on_epoch)
    return result(folder)


def result(folder: RunFolder) -> TrainResult:
    """Reads the result of a run from its folder.

    Raises:
        TrainingError: it holds no finished epoch with a checkpoint.
    """
    from d2ls.training.found import complete_checkpoints

    history, best = folder.epochs(), folder.best()
    checkpoints = complete_checkpoints(folder.checkpoints)
    if not history or best is None or not checkpoints:
        raise TrainingError(f"{folder.uri}: no finished epoch; go on with --resume {folder.name}")
    return TrainResult(
        name=folder.name,
        run_id=folder.facts().get("run_id", ""),
        folder_uri=folder.uri,
        best_checkpoint=best["uri"],
        last_checkpoint=checkpoints[-1].uri,
        best_epoch=int(best["epoch"]),
        best_scores=best["scores"],
        last_scores=history[-1],
        history=history,
    )


def _check_resume(recipe: Recipe, folder: RunFolder) -> None:
    """Refuses to go on with a finished run, or with a recipe that makes another run of it."""
    before = folder.recipe()
    if folder.facts().get("state") == run_folder.FINISHED:
        raise errors.ConfigError(f"run {folder.name} is finished; start another one under a new --name")
    changed = recipe.changes_since(before, free=(*FREE_ON_RESUME, "sweep."))
    if changed:
        raise errors.ConfigError(
            f"run {folder.name} was started with another recipe: {'; '.join(changed)}. Take the change back, or start "
            "a new run under another --name"
        )


def _tracked(
    recipe: Recipe, shards: "ShardSet", folder: RunFolder, parent_run_id: str | None, track: bool
) -> AbstractContextManager[tuple[str, str]]:
    """Opens the MLflow run and ends it, and the folder, in the right state; yields store and run."""
    if track:
        kind: tracked_run.Kind = "trial" if parent_run_id else "training"
        return tracked_run.tracked_run(recipe, shards.card, folder, kind, parent_run_id)
    return _untracked(folder)


@contextmanager
def _untracked(folder: RunFolder) -> Iterator[tuple[str, str]]:
    with tracked_run.ended(folder, last=True):
        yield "", ""


def _view(name: str, recipe: Recipe, shards: "ShardSet", ray_cluster: "Cluster", quiet: bool) -> Any:
    from pipeline.training.progress_view import ProgressView, SilentView

    if quiet:
        return SilentView()
    view = ProgressView(recipe.train.epochs)
    view.say(
        f"training {name}: {recipe.model.architecture}, {recipe.model.backbone}, "
        f"{shards.card.splits[recipe.roles.train].samples} samples of {shards.card.name}, "
        f"{recipe.cluster.workers} worker(s) on {ray_cluster.describe()}"
    )
    return view


def _fit(
    job: "Job",
    recipe: Recipe,
    folder: RunFolder,
    ray_cluster: "Cluster",
    view: Any,
    on_epoch: Callable[[dict[str, float]], None] | None,
) -> None:
    """Runs the worker group to its end, and shows what it does."""
    from pipeline.training.progress import ProgressWatcher

    folder.clear_failure()

    def tell(metrics: dict[str, float]) -> None:
        view.epoch(metrics)
        if on_epoch:
            on_epoch(metrics)

    known = len(folder.epochs())
    with ProgressWatcher(folder, tell, view.show, known):
        _run_group(job, recipe, ray_cluster, folder)


def _run_group(job: "Job", recipe: Recipe, ray_cluster: "Cluster", folder: RunFolder) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError

    from pipeline.training.interrupt import interruptible_trainer
    from pipeline.training.worker import run_worker

    low, high = recipe.cluster.worker_range
    scaling = ScalingConfig(
        num_workers=high if low == high else (low, high),  # type: ignore[arg-type]
        use_gpu=ray_cluster.use_gpu(recipe.cluster),
        resources_per_worker=ray_cluster.per_worker(recipe.cluster),
    )
    with tempfile.TemporaryDirectory(prefix="d2ls-ray-") as scratch:
        # Ray keeps nothing of worth there: checkpoints are ours, in the run folder.
        config = RunConfig(
            name=folder.name,
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=recipe.cluster.max_failures),
        )
        trainer = interruptible_trainer()(
            run_worker, train_loop_config=job.to_config(), scaling_config=scaling, run_config=config
        )
        try:
            trainer.fit()
        except KeyboardInterrupt:
            trainer.abort()
            raise
        except TrainingFailedError as error:
            _raise_failure(folder)
            raise TrainingError(_explain(error, folder, recipe)) from error
    _raise_failure(folder)


def _raise_failure(folder: RunFolder) -> None:
    """Raises in this process the error that ended the workers."""
    failure = folder.failure()
    if failure is None:
        return
    kind = getattr(errors, failure["type"], TrainingError)
    raise kind(failure["message"])


def _explain(error: Exception, folder: RunFolder, recipe: Recipe) -> str:
    """Names the workers' own error, not Ray's wrapping of it."""
    failures = getattr(error, "worker_failures", {}) or {}
    lines = [
        f"worker {rank}: {str(cause).strip().splitlines()[-1]}" for rank, cause in sorted(failures.items())
    ]
    detail = "; ".join(lines) or str(error)
    return (
        f"run {folder.name} failed {recipe.cluster.max_failures + 1} time(s): {detail}. "
        f"Go on from its newest checkpoint with --resume {folder.name}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses, trains, prints what to do next."""
    parser = cli.parser("pipeline.train", "Train a D2LS network on Ray workers; resumable by name.", EXAMPLES)
    cli.add_recipe(parser)
    names = parser.add_mutually_exclusive_group()
    names.add_argument("--name", help="name of the run (default: made up from recipe and time)")
    names.add_argument("--resume", metavar="NAME", help="go on with the run of this name")
    parser.add_argument(
        "--profile", action="store_true", help="write a trace of three steps into the run folder"
    )
    given = parser.parse_args(arguments)
    recipe = load_recipe(given.recipe, given.overrides)
    cli.warn_without_effect(recipe, given.overrides)
    finished = run(recipe, name=given.resume or given.name, resume=bool(given.resume), profile=given.profile)
    _print_next(finished)
    return 0


def _print_next(finished: TrainResult) -> None:
    scores = finished.best_scores
    print(  # noqa: T201
        f"best epoch {finished.best_epoch}: mIoU {scores.get('select/miou', float('nan')):.4f}\n"
        f"checkpoint  {finished.best_checkpoint}\n"
        f"map an image:  python -m pipeline.predict {finished.best_checkpoint} IMAGE OUTPUT.tif"
    )


if __name__ == "__main__":
    cli.run_command(main)

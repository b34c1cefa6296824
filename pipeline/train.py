"""`python -m pipeline.train RECIPE`: trains a network, here or on Ray workers, resumable by name."""

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from d2ls import errors
from d2ls.errors import TrainingError
from pipeline import cli
from pipeline.config import Recipe, load_recipe
from pipeline.config.recipe import FREE_ON_RESUME
from pipeline.training import run_folder, tracked_run
from pipeline.training.run_folder import RunFolder

if TYPE_CHECKING:
    from d2ls.shards import ShardSet

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
    in_process: bool | None = None,
) -> TrainResult:
    """Trains a network as a recipe says.

    Args:
        recipe: the run configuration.
        name: name of the run, new unless it is resumed; None makes one up.
        resume: go on with the run of this name. `auto`: if there is one, else start it; a finished one is returned.
        parent_run_id: MLflow run of the sweep that this is a trial of.
        on_epoch: called with the flat metrics of every new epoch; an error of it ends the run.
        quiet: show nothing.
        track: log to MLflow.
        profile: write a trace of some steps into the run folder.
        in_process: train in this process, without Ray; None: where the recipe asks for one worker and no cluster.

    Raises:
        ConfigError: the name is taken, or there is nothing to resume.
        ResourceError: the cluster cannot give what the recipe asks for.
        TrainingError: training cannot go on.
    """
    from pipeline.training.progress import ProgressWatcher
    from pipeline.training.progress_view import ProgressView, SilentView

    recipe = recipe.anchored()
    name = name or run_folder.new_name(recipe)
    view = SilentView() if quiet else ProgressView(recipe.train.epochs)
    training = epochs(
        recipe, name=name, resume=resume, parent_run_id=parent_run_id, track=track, profile=profile,
        in_process=in_process, say=view.say,
    )  # fmt: skip
    with view, ProgressWatcher(RunFolder.of(recipe.storage, name), view.show):
        try:
            while True:
                metrics = next(training)
                view.epoch(metrics)
                if on_epoch:
                    on_epoch(metrics)
        except StopIteration as end:
            finished: TrainResult = end.value
        except BaseException as error:
            with suppress(StopIteration):
                training.throw(error)  # so that folder and MLflow say how it ended
            raise
    return finished


def epochs(
    recipe: Recipe,
    *,
    name: str,
    resume: Resume = False,
    parent_run_id: str | None = None,
    run_is_open: bool = False,
    track: bool = True,
    profile: bool = False,
    in_process: bool | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Generator[dict[str, float], None, TrainResult]:
    """Trains as `run` does and yields the flat metrics of every new epoch.

    Closing the iterator stops the training and frees all that it holds.

    Args:
        recipe: as for `run`, and so are the arguments that are not named here.
        name: as for `run`.
        resume: as for `run`.
        parent_run_id: as for `run`.
        run_is_open: the caller opened the folder's MLflow run, and will settle it.
        track: as for `run`.
        profile: as for `run`.
        in_process: as for `run`.
        say: called with a line for the user.
    """
    from d2ls.shards import ShardSet
    from pipeline import cluster, doctor
    from pipeline.training.worker import Job

    recipe = recipe.anchored()
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
    here = needs_no_ray(recipe) if in_process is None else in_process
    with nullcontext(cluster.this_machine()) if here else cluster.connect(recipe.cluster) as machines:
        cluster.check_resources(recipe, machines)
        if fresh:
            folder.create(recipe)
        folder.claim()
        with _tracked(recipe, shards, folder, parent_run_id, track, run_is_open) as (store, run_id):
            samples = shards.card.splits[recipe.roles.train].samples
            say(
                f"training {name}: {recipe.model.architecture}, {recipe.model.backbone}, {samples} samples of "
                f"{shards.card.name}, {recipe.cluster.workers} worker(s) on {machines.describe()}"
            )
            job = Job(
                recipe=recipe.to_dict(),
                folder=folder.uri,
                name=name,
                shards=shards.uri,
                store=store,
                run_id=run_id,
                cpus=recipe.cluster.cpus_per_worker,
                gpu=machines.use_gpu(recipe.cluster),
                profile=profile,
            )
            if here:
                from pipeline.training import in_process as own

                yield from own.epochs(job, max_failures=recipe.cluster.max_failures)
            else:
                from pipeline.training import group

                yield from group.epochs(job, recipe, machines, folder)
    return result(folder)


def needs_no_ray(recipe: Recipe) -> bool:
    """Returns whether a recipe is trained in the calling process: one worker, and no cluster is named."""
    named = recipe.cluster.address or os.environ.get("RAY_ADDRESS")
    return recipe.cluster.worker_range == (1, 1) and not named


def result(folder: RunFolder) -> TrainResult:
    """Reads the result of a run from its folder.

    Raises:
        TrainingError: it holds no finished epoch with a checkpoint.
    """
    from d2ls.training.checkpoint_files import complete_checkpoints

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
    recipe: Recipe,
    shards: "ShardSet",
    folder: RunFolder,
    parent_run_id: str | None,
    track: bool,
    run_is_open: bool = False,
) -> AbstractContextManager[tuple[str, str]]:
    """Opens the MLflow run and ends it, and the folder, in the right state; yields store and run."""
    if run_is_open:
        facts = folder.facts()
        return _folder_alone(folder, facts["store"], facts["run_id"])
    if track:
        kind: tracked_run.Kind = "trial" if parent_run_id else "training"
        return tracked_run.tracked_run(recipe, shards.card, folder, kind, parent_run_id)
    return _folder_alone(folder)


@contextmanager
def _folder_alone(folder: RunFolder, store: str = "", run_id: str = "") -> Iterator[tuple[str, str]]:
    """Ends the folder in the right state, and leaves MLflow to another process, or to nobody."""
    with tracked_run.ended(folder, last=True):
        yield store, run_id


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses, trains, prints what to do next."""
    parser = cli.parser(
        "pipeline.train", "Train a D2LS network, here or on Ray workers; resumable by name.", EXAMPLES
    )
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

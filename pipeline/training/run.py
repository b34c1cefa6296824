"""A training run from its request to its result: folder, MLflow run, workers."""

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Literal

from d2ls.errors import ConfigError, TrainingError
from d2ls.shards import DatasetCard, ShardSet
from d2ls.training.checkpoint_files import complete_checkpoints
from d2ls.training.early_stopping import is_over
from pipeline import checks, cluster
from pipeline.config import Recipe
from pipeline.training import launch, run_folder, tracked_run
from pipeline.training.progress_view import ProgressView, ProgressWatcher
from pipeline.training.run_folder import RunFolder
from pipeline.training.worker import Job


@dataclass(frozen=True)
class TrainRequest:
    """What to train, and how.

    Attributes:
        recipe: the run configuration.
        name: name of the run, new unless it is resumed; None makes one up.
        resume: continue the run of this name. `auto`: continue if there is one, else start it; the result of a finished
            run is returned.
        parent_run_id: MLflow run of the sweep that this run is a trial of.
        run_is_open: the caller has opened the folder's MLflow run and ends it.
        track: log to MLflow.
        profile: write a trace of some steps into the run folder.
        in_process: train in this process, without Ray; None: if the recipe asks for one worker and no cluster.
    """

    recipe: Recipe
    name: str | None = None
    resume: bool | Literal["auto"] = False
    parent_run_id: str | None = None
    run_is_open: bool = False
    track: bool = True
    profile: bool = False
    in_process: bool | None = None


@dataclass(frozen=True)
class TrainResult:
    """A finished training run.

    Attributes:
        name: name of the run.
        run_id: MLflow run; empty if nothing was tracked.
        folder_uri: its folder.
        best_checkpoint: checkpoint with the best validation score; a model bundle.
        last_checkpoint: checkpoint of the last step.
        best_epoch: epoch of the best checkpoint, counted from 1.
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


def train(
    request: TrainRequest,
    *,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    quiet: bool = False,
) -> TrainResult:
    """Trains a network and shows the progress.

    Args:
        request: what to train.
        on_epoch: called with the flat metrics of every new epoch; an error it raises ends the run.
        quiet: show nothing.

    Raises:
        ConfigError: the name is taken, or there is nothing to resume.
        ResourceError: the cluster cannot give what the recipe asks for.
        TrainingError: training cannot go on.
    """
    recipe = request.recipe.anchored()
    name = request.name or run_folder.new_name(recipe)
    view = ProgressView(recipe.train.epochs, silent=quiet)
    training = train_epochs(request, name=name, log=view.say)
    with view, ProgressWatcher(RunFolder.of(recipe.output_dir, name), view.show):
        try:
            while True:
                metrics = next(training)
                view.epoch(metrics)
                if on_epoch:
                    on_epoch(metrics)
        except StopIteration as end:
            result: TrainResult = end.value
        except BaseException as error:
            with suppress(StopIteration):
                training.throw(error)  # run folder and MLflow record how the run ended
            raise
    return result


def train_epochs(
    request: TrainRequest, *, name: str, log: Callable[[str], None] = lambda _: None
) -> Generator[dict[str, float], None, TrainResult]:
    """Trains as `train` does and yields the flat metrics of every new epoch.

    Closing the iterator stops the training and frees all resources.

    Args:
        request: what to train.
        name: name of the run.
        log: called with a line for the user.
    """
    recipe = request.recipe.anchored()
    folder = RunFolder.of(recipe.output_dir, name)
    exists = folder.exists()
    if request.resume == "auto" and exists and folder.metadata().get("state") == run_folder.FINISHED:
        return read_result(folder)
    is_new = request.resume is False or (request.resume == "auto" and not exists)
    if is_new:
        folder.check_free()
    else:
        check_resume(recipe, folder)
    checks.quick(recipe)
    shards = ShardSet.open(recipe.shards.uri)
    in_process = needs_no_ray(recipe) if request.in_process is None else request.in_process
    with nullcontext(cluster.this_machine()) if in_process else cluster.connect(recipe.cluster) as machines:
        cluster.check_resources(recipe, machines)
        if is_new:
            folder.create(recipe)
        folder.claim()
        with _tracked(request, recipe, shards.card, folder) as (store, run_id):
            part = f"{recipe.data.fraction:g} of " if recipe.data.fraction < 1 else ""
            samples = f"{part}{shards.card.splits[recipe.roles.train].samples}"
            log(
                f"training {name}: {recipe.model.architecture}, {recipe.model.backbone}, {samples} samples of "
                f"{shards.card.name}, {recipe.cluster.workers_text} worker(s) on {machines.describe()}"
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
                profile=request.profile,
            )
            if in_process:
                yield from launch.train_in_process(job, max_failures=recipe.cluster.max_failures)
            else:
                yield from launch.train_on_ray(job, recipe, machines, folder)
    return read_result(folder)


def needs_no_ray(recipe: Recipe) -> bool:
    """Returns whether a recipe is trained in the calling process: it asks for one worker and names no cluster."""
    address = recipe.cluster.address or os.environ.get("RAY_ADDRESS")
    return recipe.cluster.worker_range == (1, 1) and not address


def read_result(folder: RunFolder) -> TrainResult:
    """Reads the result of a run from its folder.

    Raises:
        TrainingError: the folder holds no finished epoch with a checkpoint.
    """
    history, best = folder.epochs(), folder.best()
    checkpoints = complete_checkpoints(folder.checkpoints)
    if not history or best is None or not checkpoints:
        raise TrainingError(f"{folder.uri}: no finished epoch; go on with --resume {folder.name}")
    return TrainResult(
        name=folder.name,
        run_id=folder.metadata().get("run_id", ""),
        folder_uri=folder.uri,
        best_checkpoint=best["uri"],
        last_checkpoint=checkpoints[-1].uri,
        best_epoch=int(best["epoch"]),
        best_scores=best["scores"],
        last_scores=history[-1],
        history=history,
    )


def check_resume(recipe: Recipe, folder: RunFolder) -> None:
    """Refuses to resume a finished run, or one whose recipe has changed.

    A run that ended early goes on if its patience or time budget is not used up by this recipe.

    Raises:
        ConfigError: names the changed keys, or says why the run has ended.
    """
    before, metadata = folder.recipe(), folder.metadata()
    if metadata.get("state") == run_folder.FINISHED:
        reason, train = metadata.get("reason"), recipe.train
        if not reason:
            raise ConfigError(
                f"run {folder.name} is finished: it has its {before.train.length}; start another one under a new "
                "--name"
            )
        if is_over(
            folder.epochs(),
            folder.latest().get("seconds_spent", 0.0),
            patience=train.patience,
            min_delta=train.min_delta,
            time_budget=train.time_budget_seconds,
        ):
            raise ConfigError(
                f"run {folder.name} ended early: {reason}. It goes on with a larger train.patience or "
                "train.time_budget (null: no limit); or start another one under a new --name"
            )
    changed = recipe.changes_since(before, resuming="training")
    if changed:
        raise ConfigError(
            f"run {folder.name} was started with another recipe: {'; '.join(changed)}. Take the change back, or start "
            "a new run under another --name"
        )


def _tracked(
    request: TrainRequest, recipe: Recipe, card: DatasetCard, folder: RunFolder
) -> AbstractContextManager[tuple[str, str]]:
    """Opens the MLflow run, and ends it and the folder in the right state; yields store and run id."""
    if request.run_is_open:
        metadata = folder.metadata()
        return _folder_alone(folder, metadata["store"], metadata["run_id"])
    if request.track:
        kind: tracked_run.Kind = "trial" if request.parent_run_id else "training"
        return tracked_run.tracked_run(recipe, card, folder, kind, request.parent_run_id)
    return _folder_alone(folder)


@contextmanager
def _folder_alone(folder: RunFolder, store: str = "", run_id: str = "") -> Iterator[tuple[str, str]]:
    """Ends the folder in the right state; the MLflow run, if there is one, is ended by the caller."""
    with tracked_run.ended(folder, last=True):
        yield store, run_id

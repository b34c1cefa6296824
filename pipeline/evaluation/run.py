"""Runs an exact evaluation in this process or on Ray workers."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2ls.bundle import ModelInfo, read_info
from d2ls.data import Batch, EvaluationLoader, evaluation_window
from d2ls.errors import ConfigError, D2LSError, DataError
from d2ls.inference.scoring import SampleCounts, count_samples, merge
from d2ls.shards import DatasetCard, ShardSet
from pipeline.config import Recipe
from pipeline.config.train import ClusterConfig
from pipeline.console import ProgressDisplay
from pipeline.evaluation.request import EvaluateRequest
from pipeline.evaluation.result import Evaluation
from pipeline.models import fetch_model, load_predictor
from pipeline.prediction.workers import spread

if TYPE_CHECKING:
    from d2ls.inference import Predictor

PARTS_PER_WORKER = 8


@dataclass(frozen=True)
class SplitPart:
    """The part of a split that one rank of `world_size` scores."""

    shards_uri: str
    split: str
    batch_size: int
    window: int | None
    decoders: int = 0
    rank: int = 0
    world_size: int = 1


def evaluate(request: EvaluateRequest, *, show: bool = False) -> Evaluation:
    """Evaluates a model: every labelled pixel once, the same counts for any number of workers.

    Samples larger than the training window are cut into windows of that size, edge to edge, as in the validation
    during training.

    Args:
        request: model, data and settings.
        show: show the progress on the error stream.

    Raises:
        ConfigError: the model was trained for other classes than those of the shards.
        DataError: the model takes other bands or pixel types.
        ShardError: no such shards or split.
    """
    started = time.monotonic()
    settings = {"tta": request.tta, "batch_size": request.batch_size}
    with fetch_model(request.model, tracking_uri=request.tracking_uri) as folder:
        info = read_info(folder, where=request.model)
        shards = ShardSet.open(request.shards_uri)
        check_fit(request.model, info, shards.card, request.shards_uri)
        window = evaluation_window(shards, request.split, info.window)
        part = SplitPart(request.shards_uri, request.split, request.batch_size, window, request.decoders)
        title = f"scoring {request.model} on {request.split}"
        with ProgressDisplay(title, silent=not show) as display:
            samples = _count(folder, request, settings, part, display.advance)
    return Evaluation(
        model=request.model,
        dataset={
            "name": shards.card.name, "source": shards.card.source, "protocol": shards.card.protocol,
            "digest": shards.card.digest,
        },
        split=request.split,
        classes=shards.card.classes,
        samples=samples,
        settings={**settings, "window": window or "whole samples", "bootstrap": request.bootstrap},
        seed=request.seed,
        seconds=time.monotonic() - started,
        seen=info.dataset.get("digest") in (None, "", shards.card.digest),
    )  # fmt: skip


def evaluate_recipe(
    recipe: Recipe,
    model: str,
    *,
    cluster: ClusterConfig | None = None,
    bootstrap: int | None = None,
    tracking_uri: str | None = None,
) -> Evaluation:
    """Evaluates a model on a recipe's test split with the recipe's settings; shows the progress.

    Args:
        recipe: names shards, split and evaluation settings.
        model: anything that `pipeline.load_model` takes.
        cluster: Ray workers to spread the work over; None evaluates in this process.
        bootstrap: resamplings for the intervals; None: the recipe's.
        tracking_uri: MLflow store of `models:/` and `runs:/`.
    """
    settings = recipe.evaluate
    request = EvaluateRequest(
        model,
        recipe.shards.uri,
        recipe.roles.test,
        batch_size=settings.batch_size,
        tta=settings.tta,
        bootstrap=settings.bootstrap if bootstrap is None else bootstrap,
        cluster=cluster,
        tracking_uri=tracking_uri,
    )
    return evaluate(request, show=True)


def check_fit(model: str, info: ModelInfo, card: DatasetCard, shards_uri: str) -> None:
    """Refuses a model for other classes, bands or pixel types than those of the shards.

    Raises:
        ConfigError: other classes.
        DataError: other bands or pixel types.
    """
    if info.classes.names != card.classes.names:
        raise ConfigError(
            f"{model} was trained for the classes {list(info.classes.names)}, {shards_uri} holds "
            f"{list(card.classes.names)}: scores would mean nothing. Evaluate it on shards of its own classes"
        )
    if info.bands != card.bands or info.dtype != card.dtype:
        raise DataError(
            f"{model} takes bands {list(info.bands)} of {info.dtype}, {shards_uri} holds {list(card.bands)} of "
            f"{card.dtype}. Evaluate it on shards that were made with its bands (data.bands, data.custom.bands)"
        )


def count_part(
    model: "Predictor", part: SplitPart, on_progress: Callable[[int, int], None] | None = None
) -> list[SampleCounts]:
    """Counts the samples of a part; calls `on_progress` before each batch with batches done and batches in all."""
    with EvaluationLoader(
        ShardSet.open(part.shards_uri), part.split, batch_size=part.batch_size, rank=part.rank,
        world_size=part.world_size, workers=part.decoders, window=part.window,
    ) as batches:  # fmt: skip
        return merge(count_samples(model, _watched(batches, on_progress) if on_progress else batches))


def _watched(batches: EvaluationLoader, on_progress: Callable[[int, int], None]) -> Iterator[Batch]:
    for done, batch in enumerate(batches):
        on_progress(done, len(batches))
        yield batch


def _count(
    folder: Path,
    request: EvaluateRequest,
    settings: dict[str, Any],
    part: SplitPart,
    on_progress: Callable[[int, int], None],
) -> list[SampleCounts]:
    if request.cluster is None:
        return count_part(load_predictor(folder, where=request.model, **settings), part, on_progress)
    # Several parts per worker: a slow or lost worker delays little, and progress is shown early.
    count = request.cluster.worker_range[1] * PARTS_PER_WORKER
    parts = [replace(part, decoders=0, rank=rank, world_size=count) for rank in range(count)]
    samples: list[SampleCounts] = []
    results = spread(count_part, parts, folder, request.model, settings, request.cluster)
    for done, (_, result) in enumerate(results, start=1):
        on_progress(done, count)
        if isinstance(result, D2LSError):
            raise result
        samples += result
    return merge(samples)

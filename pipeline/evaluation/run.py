"""Runs an exact evaluation in this process or on Ray workers."""

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from d2ls.inference.scoring import SampleCounts, count_samples, merge
from pipeline.config import Recipe
from pipeline.config.evaluate import boundary_pixels
from pipeline.config.train import ClusterConfig
from pipeline.evaluation.parts import OnProgress, SplitPart, open_split
from pipeline.evaluation.request import EvaluateRequest
from pipeline.evaluation.result import Evaluation
from pipeline.evaluation.temperature import fit_temperature

if TYPE_CHECKING:
    from d2ls.inference import Predictor


def evaluate(request: EvaluateRequest, *, show: bool = False) -> Evaluation:
    """Evaluates a model: every labelled pixel once, the same counts for any number of workers.

    Samples larger than the training window are cut into windows of that size, edge to edge, as in the validation
    during training.

    Args:
        request: model, data and settings.
        show: show the progress on the error stream.

    Raises:
        ConfigError: the model was trained for other classes than those of the shards, or a distance in metres has no
            equivalent in pixels.
        DataError: the model takes other bands or pixel types.
        ShardError: no such shards or split.
    """
    started = time.monotonic()
    with open_split(request) as split:
        info, card = split.info, split.shards.card
        temperature = info.temperature if request.temperature is None else request.temperature
        boundary_px = boundary_pixels(
            request.boundary_px, request.boundary_m, card.ground_sampling_distance, where=request.shards_uri
        )
        count = partial(count_part, boundary_px=boundary_px)
        title = f"scoring {request.model} on {request.split}"
        parts = split.work(count, title, show=show, tta=request.tta, temperature=temperature)
    return Evaluation(
        model=request.model,
        dataset={"name": card.name, "source": card.source, "protocol": card.protocol, "digest": card.digest},
        split=request.split,
        classes=split.part.mapping.classes if split.part.mapping else card.classes,
        samples=merge((sample for part in parts for sample in part), boundary_px=boundary_px),
        settings={
            "tta": request.tta, "batch_size": request.batch_size, "window": split.part.window or "whole samples",
            "bootstrap": request.bootstrap, **({"boundary_px": boundary_px} if boundary_px else {}),
        },
        seconds=time.monotonic() - started,
        seen=info.dataset.get("digest") in (None, "", card.digest),
        temperature=temperature,
        class_map=request.class_map,
        mapping=split.part.mapping,
        labelled=card.splits[request.split].class_pixels,
        boundary_px=boundary_px,
    )  # fmt: skip


def evaluate_recipe(
    recipe: Recipe,
    model: str,
    *,
    cluster: ClusterConfig | None = None,
    bootstrap: int | None = None,
    tracking_uri: str | None = None,
    calibrate: bool = False,
) -> Evaluation:
    """Evaluates a model on a recipe's test split with the recipe's settings; shows the progress.

    Args:
        recipe: names shards, split and evaluation settings.
        model: anything that `pipeline.load_model` takes.
        cluster: Ray workers to spread the work over; None evaluates in this process.
        bootstrap: resamplings for the intervals; None: the recipe's.
        tracking_uri: MLflow store of `models:/` and `runs:/`.
        calibrate: fit a temperature on the recipe's val split first, instead of the model's own.
    """
    settings = recipe.evaluate.model_dump() | ({} if bootstrap is None else {"bootstrap": bootstrap})
    request = EvaluateRequest(
        model,
        recipe.shards.uri,
        recipe.roles.test,
        **settings,
        cluster=cluster,
        tracking_uri=tracking_uri,
    )
    if calibrate:
        temperature = fit_temperature(replace(request, split=recipe.roles.val), show=True)
        request = replace(request, temperature=temperature)
    return evaluate(request, show=True)


def count_part(
    model: "Predictor",
    part: SplitPart,
    on_progress: OnProgress | None = None,
    *,
    boundary_px: int | None = None,
) -> list[SampleCounts]:
    """Counts the samples of a part. Pieces of samples that reach into other parts wait for the last `merge`."""
    with part.batches(on_progress) as batches:
        counted = count_samples(model, batches, part.mapping, keep_pieces=boundary_px is not None)
        return merge(counted, boundary_px=boundary_px, device=model.device)

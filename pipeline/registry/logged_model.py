"""Registers a checkpoint: a logged model with its metrics, then a version with tags, card and alias `challenger`."""

import json
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2ls.bundle import INFO_FILE, ModelInfo
from d2ls.errors import TrackingError
from d2ls.scratch import scratch_folder
from pipeline.registry.model_card import model_card, scores
from pipeline.registry.model_files import bundle_digest, fetch_bundle, save_model
from pipeline.registry.versions import (
    CHALLENGER,
    CHAMPION,
    REPORT_FILE,
    ModelVersion,
    by_version,
    search,
    set_alias,
)
from pipeline.tracking import Store, connection, mlflow_internals, run_tags, runs
from pipeline.tracking.writer import PER_REQUEST, metric_name, now

if TYPE_CHECKING:
    from d2ls.shards import DatasetCard
    from pipeline.config import Recipe

BUNDLE_TAG = "bundle_digest"
TEMPERATURE_TAG = "calibration_temperature"  # a run has the tag `temperature`: of the contrastive term


def register_checkpoint(
    store: Store,
    run_id: str,
    checkpoint_folder: Path | str,
    name: str,
    *,
    card: "DatasetCard",
    evaluation: Mapping[str, Any] | None = None,
    recipe: "Recipe",
    step: int = 0,
) -> ModelVersion:
    """Registers the model of a checkpoint as a new version and gives it the alias `challenger`.

    The same weights of the same run are registered once. A second call returns the first version, unless that version
    has no temperature and `evaluation` has one.

    Args:
        store: where the registry is.
        run_id: run that trained it.
        checkpoint_folder: folder or URI that holds `model.safetensors` and `model.json`.
        name: registered model; created if it is new.
        card: card of the shards it was trained on.
        evaluation: evaluation on the test split, as plain values; logged with the model, which keeps its temperature.
        recipe: the resolved recipe of the run.
        step: optimizer step of the checkpoint, for the linked metrics.

    Raises:
        TrackingError: the store refuses.
        WeightsError: no model there.
    """
    with scratch_folder("register") as scratch, connection.named(store.uri, model=name):
        bundle = fetch_bundle(checkpoint_folder, scratch / "bundle")
        info = ModelInfo.from_json((bundle / INFO_FILE).read_text(encoding="utf-8"))
        _check_together(str(checkpoint_folder), info, card, evaluation, recipe)
        digest = bundle_digest(bundle)
        temperature = (evaluation or {}).get("calibration", {}).get("temperature")
        for version in search(store, name):
            complete = temperature is None or TEMPERATURE_TAG in version.tags
            if version.tags.get(BUNDLE_TAG) == digest and version.run_id == run_id and complete:
                known = by_version(store, name, version.version)  # a search returns no aliases
                if CHAMPION in known.aliases:
                    return known  # the champion is not also a challenger
                set_alias(store, name, CHALLENGER, version.version)
                return by_version(store, name, version.version)
        if temperature is not None:
            info = replace(info, temperature=temperature)
            (bundle / INFO_FILE).write_text(info.to_json(), encoding="utf-8")
        step = step or int(info.extra.get("step", 0))
        text = run_tags.short(model_card(info, card, recipe, evaluation, run_id))
        tags = _tags(info, card, recipe, evaluation, digest)
        model_id = _made_before(store, run_id, name, tags) or _log_model(
            store, run_id, name, bundle, info, text, evaluation, recipe, card, tags, step
        )
        return _create_version(store, name, model_id, run_id, text, tags, recipe)


def _check_together(
    where: str,
    info: ModelInfo,
    card: "DatasetCard",
    evaluation: Mapping[str, Any] | None,
    recipe: "Recipe",
) -> None:
    """Checks that weights, recipe, data and report belong together.

    Raises:
        TrackingError: names what differs.
    """
    trained_by, trained_on = info.extra.get("recipe_digest"), info.dataset.get("digest")
    if trained_by != recipe.digest():
        raise TrackingError(
            f"{where}: these weights were trained by another recipe (digest {str(trained_by)[:12]}) than the one given "
            f"({recipe.digest()[:12]}). Register the run folder that holds both"
        )
    digests = {"the shards of the recipe": card.digest}
    if evaluation and "dataset" in evaluation:
        digests["the evaluation"] = evaluation["dataset"].get("digest")
    for what, digest in digests.items():
        if digest != trained_on:
            raise TrackingError(
                f"{where}: these weights were trained on data with digest {str(trained_on)[:12]}, {what} "
                f"({recipe.shards.uri}): {str(digest)[:12]}. Put the shards back that it was trained on, or train again"
            )


def _made_before(store: Store, run_id: str, name: str, tags: Mapping[str, str]) -> str | None:
    """Returns a logged model that a killed process left without a version; deletes unfinished ones."""
    client, complete = store.client, None
    experiment = client.get_run(run_id).info.experiment_id
    runs.check_not_moved(store.uri, client.get_experiment(experiment))
    for model in client.search_logged_models([experiment], f"source_run_id = '{run_id}'"):
        if model.status != "READY":
            client.delete_logged_model(model.model_id)
        elif model.name == name and dict(model.tags).items() >= tags.items():
            complete = str(model.model_id)
    return complete


def _log_model(
    store: Store,
    run_id: str,
    name: str,
    bundle: Path,
    info: ModelInfo,
    text: str,
    evaluation: Mapping[str, Any] | None,
    recipe: "Recipe",
    card: "DatasetCard",
    tags: Mapping[str, str],
    step: int,
) -> str:
    """Makes a logged model of the run with its files; returns its id."""
    from mlflow.entities import LoggedModelOutput

    client = store.client
    experiment = client.get_run(run_id).info.experiment_id
    params = {
        key: str(value)
        for key, value in recipe.flat().items()
        if key.startswith(("model.", "loss.", "train."))
    }
    model = client.create_logged_model(
        experiment, name=name, source_run_id=run_id, tags=dict(tags), params=params, model_type="segmentation"
    )
    try:
        with scratch_folder("register") as scratch:
            files = {
                "model_card": ("README.md", text),
                "recipe": ("recipe.yaml", runs.shareable(recipe).to_yaml()),
                "dataset_card": ("card.json", card.to_json()),
                **({"evaluation": (REPORT_FILE, json.dumps(evaluation, indent=2))} if evaluation else {}),
            }
            for file, content in files.values():
                Path(scratch, file).write_text(content, encoding="utf-8")
            folder = scratch / "model"
            save_model(
                folder, bundle, info, {key: Path(scratch, file) for key, (file, _) in files.items()},
                artifact_path=model.artifact_location, model_uuid=model.model_id, model_id=model.model_id,
                run_id=run_id,
            )  # fmt: skip
            client.log_model_artifacts(model.model_id, str(folder))
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
        client.finalize_logged_model(model.model_id, "READY")
    except BaseException:
        with suppress(Exception):  # the first error counts; the next call deletes it
            client.delete_logged_model(model.model_id)
        raise
    _link_metrics(store, run_id, model.model_id, card, evaluation, step)
    return str(model.model_id)


def _link_metrics(
    store: Store,
    run_id: str,
    model_id: str,
    card: "DatasetCard",
    evaluation: Mapping[str, Any] | None,
    step: int,
) -> None:
    """Logs the run's scores at the checkpoint's step, and those of the test split, as metrics of the logged model."""
    from mlflow.entities import Metric

    keys = store.client.get_run(run_id).data.metrics
    chosen = {
        key: metric.value
        for key in keys
        if key.startswith(("val/", "train/")) or key == "epoch"
        for metric in store.client.get_metric_history(run_id, key)
        if metric.step == step  # not the newest value: the best checkpoint is rarely the last one
    }
    chosen |= {f"test/{key}": value for key, value in scores(evaluation).items()}
    belongs = {
        "model_id": model_id,
        "dataset_name": card.name,
        "dataset_digest": card.digest[:36],
        "run_id": run_id,
    }
    rows = [
        Metric(metric_name(key), value, now(), step, **belongs)
        for key, value in chosen.items()
        if not math.isnan(value)
    ]
    for batch in connection.batches(rows, PER_REQUEST):
        connection.retried(partial(store.client.log_batch, run_id, metrics=batch))


def _create_version(
    store: Store,
    name: str,
    model_id: str,
    run_id: str,
    text: str,
    tags: Mapping[str, str],
    recipe: "Recipe",
) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    client = store.client
    description = (
        f"Segmentation of {recipe.name}. {recipe.description} `@{CHAMPION}` is the one to use; `@{CHALLENGER}` waits "
        "for `python -m pipeline.promote`."
    )

    def create_model() -> None:
        try:
            client.create_registered_model(name, description=run_tags.short(description))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    connection.retried(create_model)
    with _default_store(store.uri):
        made = connection.retried(
            lambda: client.create_model_version(
                name,
                source=f"models:/{model_id}",
                run_id=run_id,
                tags=dict(tags),
                description=text,
                model_id=model_id,
            )
        )
    set_alias(store, name, CHALLENGER, made.version)
    return by_version(store, name, str(made.version))


def _default_store(uri: str) -> AbstractContextManager[None]:
    return nullcontext() if connection.is_server(uri) else mlflow_internals.as_default(uri)


def _tags(
    info: ModelInfo,
    card: "DatasetCard",
    recipe: "Recipe",
    evaluation: Mapping[str, Any] | None,
    digest: str,
) -> dict[str, str]:
    numbers = scores(evaluation)
    return {
        BUNDLE_TAG: digest,
        "dataset": card.name,
        "protocol": card.protocol,
        "dataset_digest": card.digest,
        "recipe_digest": recipe.digest(),
        "architecture": str(info.config.get("architecture", "d2ls")),
        "backbone": str(info.config.get("backbone", "")),
        "stages": str(info.config.get("stages", "-")),
        **({} if info.temperature is None else {TEMPERATURE_TAG: f"{info.temperature:g}"}),
        **({"report_miou": f"{numbers['miou']:.4f}"} if "miou" in numbers else {}),
    }

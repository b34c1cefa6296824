"""Registers a checkpoint: a logged model with its metrics, then a version with tags, card and alias `challenger`."""

import json
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
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


@dataclass(frozen=True)
class _Candidate:
    """A model to register; `digest` is that of its files before the temperature was added."""

    store: Store
    run_id: str
    name: str
    info: ModelInfo
    card: "DatasetCard"
    recipe: "Recipe"
    evaluation: Mapping[str, Any] | None
    digest: str
    step: int

    @cached_property
    def text(self) -> str:
        """The model card, as long as the registry takes it."""
        return run_tags.short(model_card(self.info, self.card, self.recipe, self.evaluation, self.run_id))

    @cached_property
    def tags(self) -> dict[str, str]:
        """The tags of logged model and version."""
        numbers, config = scores(self.evaluation), self.info.config
        return {
            BUNDLE_TAG: self.digest,
            "dataset": self.card.name,
            "protocol": self.card.protocol,
            "dataset_digest": self.card.digest,
            "recipe_digest": self.recipe.digest(),
            "architecture": str(config.get("architecture", "d2ls")),
            "backbone": str(config.get("backbone", "")),
            "stages": str(config.get("stages", "-")),
            **({} if self.info.temperature is None else {TEMPERATURE_TAG: f"{self.info.temperature:g}"}),
            **({"report_miou": f"{numbers['miou']:.4f}"} if "miou" in numbers else {}),
        }


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
        model = _Candidate(store, run_id, name, info, card, recipe, evaluation, digest, step)
        return _create_version(model, _made_before(model) or _log_model(model, bundle))


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


def _made_before(model: _Candidate) -> str | None:
    """Returns a logged model that a killed process left without a version; deletes unfinished ones."""
    client, complete = model.store.client, None
    experiment = client.get_run(model.run_id).info.experiment_id
    runs.check_not_moved(model.store.uri, client.get_experiment(experiment))
    for logged in client.search_logged_models([experiment], f"source_run_id = '{model.run_id}'"):
        if logged.status != "READY":
            client.delete_logged_model(logged.model_id)
        elif logged.name == model.name and dict(logged.tags).items() >= model.tags.items():
            complete = str(logged.model_id)
    return complete


def _log_model(model: _Candidate, bundle: Path) -> str:
    """Makes a logged model of the run with its files; returns its id."""
    from mlflow.entities import LoggedModelOutput

    client, run_id = model.store.client, model.run_id
    params = {
        key: str(value)
        for key, value in model.recipe.flat().items()
        if key.startswith(("model.", "loss.", "train."))
    }
    logged = client.create_logged_model(
        client.get_run(run_id).info.experiment_id, name=model.name, source_run_id=run_id, tags=model.tags,
        params=params, model_type="segmentation",
    )  # fmt: skip
    try:
        with scratch_folder("register") as scratch:
            files = {
                "model_card": ("README.md", model.text),
                "recipe": ("recipe.yaml", runs.shareable(model.recipe).to_yaml()),
                "dataset_card": ("card.json", model.card.to_json()),
            }
            if model.evaluation:
                files["evaluation"] = (REPORT_FILE, json.dumps(model.evaluation, indent=2))
            for file, content in files.values():
                Path(scratch, file).write_text(content, encoding="utf-8")
            folder = scratch / "model"
            save_model(
                folder, bundle, model.info, {key: Path(scratch, file) for key, (file, _) in files.items()},
                artifact_path=logged.artifact_location, model_uuid=logged.model_id, model_id=logged.model_id,
                run_id=run_id,
            )  # fmt: skip
            client.log_model_artifacts(logged.model_id, str(folder))
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, model.step)])
        client.finalize_logged_model(logged.model_id, "READY")
    except BaseException:
        with suppress(Exception):  # the first error counts; the next call deletes it
            client.delete_logged_model(logged.model_id)
        raise
    _link_metrics(model, logged.model_id)
    return str(logged.model_id)


def _link_metrics(model: _Candidate, model_id: str) -> None:
    """Logs the run's scores at the checkpoint's step, and those of the test split, as metrics of the logged model."""
    from mlflow.entities import Metric

    client, run_id = model.store.client, model.run_id
    chosen = {
        key: metric.value
        for key in client.get_run(run_id).data.metrics
        if key.startswith(("val/", "train/")) or key == "epoch"
        for metric in client.get_metric_history(run_id, key)
        if metric.step == model.step  # not the newest value: the best checkpoint is rarely the last one
    }
    chosen |= {f"test/{key}": value for key, value in scores(model.evaluation).items()}
    belongs = {
        "model_id": model_id,
        "dataset_name": model.card.name,
        "dataset_digest": model.card.digest[:36],
        "run_id": run_id,
    }
    rows = [
        Metric(metric_name(key), value, now(), model.step, **belongs)
        for key, value in chosen.items()
        if not math.isnan(value)
    ]
    for batch in connection.batches(rows, PER_REQUEST):
        connection.retried(partial(client.log_batch, run_id, metrics=batch))


def _create_version(model: _Candidate, model_id: str) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    store, name, client = model.store, model.name, model.store.client
    description = (
        f"Segmentation of {model.recipe.name}. {model.recipe.description} `@{CHAMPION}` is the one to use; "
        f"`@{CHALLENGER}` waits for `python -m pipeline.promote`."
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
                name, source=f"models:/{model_id}", run_id=model.run_id, tags=model.tags, description=model.text,
                model_id=model_id,
            )
        )  # fmt: skip
    set_alias(store, name, CHALLENGER, made.version)
    return by_version(store, name, str(made.version))


def _default_store(uri: str) -> AbstractContextManager[None]:
    return nullcontext() if connection.is_server(uri) else mlflow_internals.as_default(uri)

"""From a checkpoint to a registered version: logged model, linked metrics, tags, card, alias `challenger`."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2ls.bundle import INFO_FILE, ModelInfo
from pipeline.tracking import connection
from pipeline.tracking.model_card import model_card, scores
from pipeline.tracking.registry import CHALLENGER, CHAMPION, ModelVersion, by_version, versions
from pipeline.tracking.saved_model import bundle_digest, fetch_bundle, save_model

if TYPE_CHECKING:
    from d2ls.shards import DatasetCard
    from pipeline.config import Recipe
    from pipeline.tracking.store import Store

BUNDLE_TAG = "bundle_digest"


def register(
    store: "Store",
    run_id: str,
    checkpoint_folder: Path | str,
    name: str,
    *,
    card: "DatasetCard",
    evaluation: Mapping[str, Any] | None,
    recipe: "Recipe",
    step: int = 0,
) -> ModelVersion:
    """Registers the model of a checkpoint as a new version and gives it the alias `challenger`.

    The same weights of the same run are registered once: a second call returns the first version.

    Args:
        store: where to.
        run_id: run that trained it.
        checkpoint_folder: folder or URI that holds `model.safetensors` and `model.json`.
        name: registered model; made where it is new.
        card: card of the shards it was trained on.
        evaluation: evaluation on the report split, as plain values; logged with the model.
        recipe: the resolved recipe of the run.
        step: optimizer step of the checkpoint, for the linked metrics.

    Raises:
        TrackingError: the store refuses.
        WeightsError: no model there.
    """
    with tempfile.TemporaryDirectory() as scratch, connection.named(store.uri, model=name):
        bundle = fetch_bundle(checkpoint_folder, Path(scratch) / "bundle")
        digest = bundle_digest(bundle)
        for version in versions(store, name):
            if version.tags.get(BUNDLE_TAG) == digest and version.run_id == run_id:
                known = by_version(store, name, version.version)  # a search tells no aliases
                if CHAMPION in known.aliases:
                    return known  # who reigns challenges nobody
                store.client.set_registered_model_alias(name, CHALLENGER, version.version)
                return by_version(store, name, version.version)
        info = ModelInfo.from_json((bundle / INFO_FILE).read_text(encoding="utf-8"))
        step = step or int(info.extra.get("step", 0))
        text = model_card(info, card, recipe, evaluation, run_id)
        tags = _tags(info, card, recipe, evaluation, digest)
        model_id = _log_model(store, run_id, name, bundle, info, text, evaluation, recipe, card, tags, step)
        return _create_version(store, name, model_id, run_id, text, tags, recipe)


def _log_model(
    store: "Store",
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
    """Makes a logged model of the run, with its files; returns its id."""
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
        with tempfile.TemporaryDirectory() as scratch:
            files = {
                "model_card": ("README.md", text),
                "recipe": ("recipe.yaml", recipe.to_yaml()),
                "dataset_card": ("card.json", card.to_json()),
                **(
                    {"evaluation": ("evaluation.json", json.dumps(evaluation, indent=2))}
                    if evaluation
                    else {}
                ),
            }
            for file, content in files.values():
                Path(scratch, file).write_text(content, encoding="utf-8")
            folder = Path(scratch) / "model"
            save_model(
                folder, bundle, info, {key: Path(scratch, file) for key, (file, _) in files.items()},
                artifact_path=model.artifact_location, model_uuid=model.model_id, model_id=model.model_id,
                run_id=run_id,
            )  # fmt: skip
            client.log_model_artifacts(model.model_id, str(folder))
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
        client.finalize_logged_model(model.model_id, "READY")
    except BaseException:
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    _link_metrics(store, run_id, model.model_id, card, evaluation, step)
    return str(model.model_id)


def _link_metrics(
    store: "Store",
    run_id: str,
    model_id: str,
    card: "DatasetCard",
    evaluation: Mapping[str, Any] | None,
    step: int,
) -> None:
    """Logs the run's scores at the checkpoint's step, and those of the report split, as metrics of the logged model."""
    import time

    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    keys = store.client.get_run(run_id).data.metrics
    chosen = {
        key: metric.value
        for key in keys
        if key.startswith(("select/", "train/")) or key == "epoch"
        for metric in store.client.get_metric_history(run_id, key)
        if metric.step == step  # not the newest value: the best checkpoint is seldom the last one
    }
    chosen |= {f"report/{key}": value for key, value in scores(evaluation).items()}
    rows = [
        Metric(key, value, now, step, model_id=model_id, dataset_name=card.name, dataset_digest=card.digest[:36],
               run_id=run_id)
        for key, value in chosen.items()
    ]  # fmt: skip
    for start in range(0, len(rows), 1000):
        store.client.log_batch(run_id, metrics=rows[start : start + 1000])


def _create_version(
    store: "Store",
    name: str,
    model_id: str,
    run_id: str,
    text: str,
    tags: Mapping[str, str],
    recipe: "Recipe",
) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    client = store.client
    try:
        client.create_registered_model(
            name,
            description=f"Segmentation of {recipe.name}. {recipe.description} `@{CHAMPION}` is the one to use; "
            f"`@{CHALLENGER}` waits for `python -m pipeline.promote`.",
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    with connection.as_default(store.uri):
        made = client.create_model_version(
            name,
            source=f"models:/{model_id}",
            run_id=run_id,
            tags=dict(tags),
            description=text,
            model_id=model_id,
        )
    client.set_registered_model_alias(name, CHALLENGER, made.version)
    return by_version(store, name, str(made.version))


def _tags(
    info: ModelInfo,
    card: "DatasetCard",
    recipe: "Recipe",
    evaluation: Mapping[str, Any] | None,
    digest: str,
) -> dict[str, str]:
    found = scores(evaluation)
    return {
        BUNDLE_TAG: digest,
        "dataset": card.name,
        "protocol": card.protocol,
        "dataset_digest": card.digest,
        "recipe_digest": recipe.digest(),
        "architecture": str(info.config.get("architecture", "d2ls")),
        "backbone": str(info.config.get("backbone", "")),
        "stages": str(info.config.get("stages", "-")),
        **({"report_miou": f"{found['miou']:.4f}"} if "miou" in found else {}),
    }

"""The model registry: versions made from checkpoints, aliases, and bundles back on the local disk."""

import hashlib
import json
import math
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2ls import storage
from d2ls.bundle import INFO_FILE, WEIGHTS_FILE, ModelInfo
from d2ls.errors import TrackingError, WeightsError
from pipeline.tracking import code, location
from pipeline.tracking.model_card import model_card, scores

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion as Version

    from d2ls.shards import DatasetCard
    from pipeline.config import Recipe
    from pipeline.tracking.store import Store

CHALLENGER, CHAMPION = "challenger", "champion"
SCRIPT = Path(__file__).with_name("served_model.py")
BUNDLE_TAG = "bundle_digest"


@dataclass(frozen=True)
class ModelVersion:
    """A version in the registry.

    Attributes:
        name: registered model.
        version: number, as text.
        run_id: run that trained it.
        model_id: MLflow's logged model.
        aliases: such as `champion`.
        tags: data set, digests, scores.
        description: Markdown: model card and decisions.
    """

    name: str
    version: str
    run_id: str = ""
    model_id: str = ""
    aliases: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    description: str = ""

    @property
    def uri(self) -> str:
        """`models:/name/version`."""
        return f"models:/{self.name}/{self.version}"


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
    with tempfile.TemporaryDirectory() as scratch, location.named(store.uri, model=name):
        bundle = fetch_bundle(checkpoint_folder, Path(scratch) / "bundle")
        digest = bundle_digest(bundle)
        for version in versions(store, name):
            if version.tags.get(BUNDLE_TAG) == digest and version.run_id == run_id:
                store.client.set_registered_model_alias(name, CHALLENGER, version.version)
                return by_version(store, name, version.version)
        info = ModelInfo.from_json((bundle / INFO_FILE).read_text(encoding="utf-8"))
        step = step or int(info.extra.get("step", 0))
        text = model_card(info, card, recipe, evaluation, run_id)
        tags = _tags(info, card, recipe, evaluation, digest)
        model_id = _log_model(store, run_id, name, bundle, info, text, evaluation, recipe, card, tags, step)
        return _create_version(store, name, model_id, run_id, text, tags, recipe)


def promote(store: "Store", name: str, version: str, reason: str) -> ModelVersion:
    """Makes a version the champion and writes the reason into its description.

    Args:
        store: where.
        name: registered model.
        version: its number.
        reason: why; with the scores that were compared.
    """
    with location.named(store.uri, model=name):
        old = by_alias(store, name, CHAMPION)
        challenger = by_alias(store, name, CHALLENGER)
        store.client.set_registered_model_alias(name, CHAMPION, version)
        if challenger is not None and challenger.version == version:
            store.client.delete_registered_model_alias(name, CHALLENGER)
        if old is not None and old.version != version:
            note(store, name, old.version, f"Succeeded as champion by version {version}: {reason}")
        note(store, name, version, f"Champion: {reason}")
        return by_version(store, name, version)


def note(store: "Store", name: str, version: str, text: str) -> None:
    """Adds a dated line to a version's description."""
    from datetime import UTC, datetime

    old = by_version(store, name, version).description.rstrip()
    heading = "" if "## Decisions" in old else "\n\n## Decisions"
    line = f"- {datetime.now(UTC):%Y-%m-%d %H:%M} UTC: {text}"
    store.client.update_model_version(name, version, description=f"{old}{heading}\n{line}\n")


def should_promote(challenger: float, champion: float | None) -> tuple[bool, str]:
    """Decides by scores on the same report data; equal is not better.

    Args:
        challenger: mean IoU of the challenger.
        champion: of the reigning champion, None where none reigns.

    Returns:
        The decision, and the reason in words.
    """
    if math.isnan(challenger):
        return False, "the report split has no labelled pixel of a scored class, so there is no score"
    if champion is None:
        return True, f"mIoU {challenger:.4f} on the report split; no champion reigned"
    if challenger > champion or math.isnan(champion):
        return True, f"mIoU {challenger:.4f} beats the champion's {champion:.4f} on the same report data"
    return False, f"mIoU {challenger:.4f} does not beat the champion's {champion:.4f} on the same report data"


def versions(store: "Store", name: str) -> list[ModelVersion]:
    """Returns all versions, newest first; empty where the name is new."""
    found = store.client.search_model_versions(f"name = '{name}'", max_results=1000)
    return sorted(map(_version, found), key=lambda each: -int(each.version))


def by_version(store: "Store", name: str, version: str) -> ModelVersion:
    """Returns one version.

    Raises:
        TrackingError: none with that number.
    """
    with location.named(store.uri, model=f"{name} version {version}"):
        return _version(store.client.get_model_version(name, version))


def by_alias(store: "Store", name: str, alias: str) -> ModelVersion | None:
    """Returns the version with an alias, None where there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return _version(store.client.get_model_version_by_alias(name, alias))
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise TrackingError(f"tracking store {store.uri}, model {name}@{alias}: {error.message}") from error


def find(store: "Store", model_uri: str) -> ModelVersion:
    """Returns the version that `models:/name@alias` or `models:/name/version` means.

    Raises:
        TrackingError: no such model, version or alias; names those that exist.
    """
    match = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", model_uri)
    if not match:
        raise TrackingError(f"model {model_uri!r}: write models:/name@alias or models:/name/version")
    name, alias, number = match.groups()
    known = versions(store, name)
    for version in known:
        if version.version == number:
            return version
    found = by_alias(store, name, alias) if alias and known else None
    if found is None:
        models = ", ".join(model.name for model in store.client.search_registered_models()) or "none"
        numbers = ", ".join(each.version for each in known)
        aliases = ", ".join(sorted(store.client.get_registered_model(name).aliases)) if known else ""
        there = (
            f"{name} has versions {numbers} and aliases {aliases or 'none'}" if known else f"models: {models}"
        )
        raise TrackingError(f"{model_uri}: not in the registry {store.uri}; {there}")
    return found


def download(store: "Store", model_uri: str, folder: Path | None = None) -> Path:
    """Returns a local folder with the bundle of a model.

    Args:
        store: where from.
        model_uri: `models:/name@alias`, `models:/name/version`, `models:/m-<id>` or `runs:/<run id>`.
        folder: where to put it; None: where it lies, if that is a local disk, else a temporary folder.

    Raises:
        TrackingError: no such model, or one that this project did not register.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        source = store.client.get_logged_model(_model_id(store, model_uri)).artifact_location
        found = download_artifacts(
            artifact_uri=f"{source}/artifacts/bundle",
            dst_path=str(folder) if folder else None,
            tracking_uri=store.uri,
            registry_uri=store.uri,
        )
    except (MlflowException, OSError) as error:
        raise TrackingError(f"{model_uri}: its files cannot be fetched from {store.uri}: {error}") from error
    if not (Path(found) / INFO_FILE).is_file():
        raise TrackingError(
            f"{model_uri}: holds no {INFO_FILE}; only models registered by this project can be used"
        )
    return Path(found)


def fetch_bundle(source: Path | str, folder: Path) -> Path:
    """Copies weights and description of a checkpoint (folder or URI) into a new local folder; returns it."""
    folder.mkdir(parents=True)
    for name in (INFO_FILE, WEIGHTS_FILE):
        uri = storage.join(source, name)
        if not storage.exists(uri):
            raise WeightsError(
                f"{source}: no {name}; a model is a folder with {INFO_FILE} and {WEIGHTS_FILE}"
            )
        (folder / name).write_bytes(storage.read_bytes(uri))
    return folder


def bundle_digest(bundle: Path) -> str:
    """SHA-256 (hex) over weights and description."""
    digest = hashlib.sha256()
    for name in (INFO_FILE, WEIGHTS_FILE):
        with (bundle / name).open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def signature(info: ModelInfo) -> Any:
    """Signature of the served model: any batch, height and width, fixed bands. Inferring it would fix all of them."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ParamSchema, ParamSpec, Schema, TensorSpec

    images = TensorSpec(np.dtype(info.dtype), (-1, -1, -1, len(info.bands)))
    labels = TensorSpec(np.dtype("uint8"), (-1, -1, -1))
    params = ParamSchema([ParamSpec("probabilities", "boolean", False), ParamSpec("image", "string", "")])
    return ModelSignature(inputs=Schema([images]), outputs=Schema([labels]), params=params)


def save_model(
    folder: Path, bundle: Path, info: ModelInfo, extra: Mapping[str, Path], **identity: Any
) -> None:
    """Writes a complete MLflow model folder: script, code, bundle, requirements, signature, example.

    Args:
        folder: made here; must not exist.
        bundle: weights and description.
        info: the description, read.
        extra: further files by name, kept as artifacts.
        **identity: fields of MLflow's `Model` (model_id, run_id, artifact_path).
    """
    import mlflow.pyfunc
    import numpy as np
    from mlflow.models import Model

    with tempfile.TemporaryDirectory() as scratch:
        package = code.write_package(Path(scratch) / "code")
        artifacts = {"bundle": bundle, "code": Path(scratch) / "code", **extra}
        example = np.random.default_rng(0).integers(0, 255, (1, 32, 32, len(info.bands))).astype(info.dtype)
        with location.quiet():
            mlflow.pyfunc.save_model(
                path=str(folder),
                python_model=str(SCRIPT),
                artifacts={name: str(path) for name, path in artifacts.items()},
                signature=signature(info),
                input_example=example,
                pip_requirements=code.requirements(info),
                metadata={
                    "package": package,
                    "classes": list(info.classes.names),
                    "palette": info.classes.to_json(),
                },
                mlflow_model=Model(**identity),
            )


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
    """Logs the run's scores, and those of the report split, once more as metrics of the logged model."""
    import time

    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    of_run = store.client.get_run(run_id).data.metrics
    chosen = {
        key: value for key, value in of_run.items() if key.startswith(("select/", "train/")) or key == "epoch"
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
            description=f"D2LS for {recipe.name}. {recipe.description} `@{CHAMPION}` is the one to use; "
            f"`@{CHALLENGER}` waits for `python -m pipeline.promote`.",
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    with location.as_default(store.uri):
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
        "backbone": str(info.config.get("backbone", "")),
        "stages": str(info.config.get("stages", "")),
        **({"report_miou": f"{found['miou']:.4f}"} if "miou" in found else {}),
    }


def _model_id(store: "Store", model_uri: str) -> str:
    """Returns the id of MLflow's logged model that holds the files."""
    if re.fullmatch(r"models:/m-[0-9a-f]+", model_uri):
        return model_uri.removeprefix("models:/")
    if model_uri.startswith("runs:/"):
        run_id = model_uri.removeprefix("runs:/").split("/", 1)[0]
        with location.named(store.uri, run=run_id):
            outputs = store.client.get_run(run_id).outputs
        models = list(outputs.model_outputs) if outputs else []
        if not models:
            way = f"make one with `python -m pipeline.register {run_id}`"
            raise TrackingError(f"{model_uri}: the run has no model; {way}")
        return str(models[-1].model_id)
    version = find(store, model_uri)
    if not version.model_id:
        raise TrackingError(
            f"{model_uri}: registered by something else; this project's models are logged models"
        )
    return version.model_id


def _version(found: "Version") -> ModelVersion:
    return ModelVersion(
        name=found.name,
        version=str(found.version),
        run_id=found.run_id or "",
        model_id=(found.source or "").removeprefix("models:/")
        if (found.source or "").startswith("models:/m-")
        else "",
        aliases=tuple(found.aliases or ()),
        tags=dict(found.tags or {}),
        description=found.description or "",
    )

"""Versions in the registry: finds, describes, promotes and downloads them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from d2ls.bundle import INFO_FILE
from d2ls.errors import TrackingError
from d2ls.scratch import scratch_folder
from pipeline.tracking import Store, connection, run_tags, runs

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion as Version

    from pipeline.config import Recipe

CHALLENGER, CHAMPION = "challenger", "champion"
DECISIONS = "## Decisions"
REPORT_FILE = "evaluation.json"


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
        description: Markdown: model card, then the dated decisions.
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


def promote(store: Store, name: str, version: str, reason: str) -> ModelVersion:
    """Makes a version the champion and writes the reason into its description.

    Args:
        store: the registry.
        name: registered model.
        version: its number.
        reason: the reason, with the scores that were compared.
    """
    with connection.named(store.uri, model=name):
        old = by_alias(store, name, CHAMPION)
        challenger = by_alias(store, name, CHALLENGER)
        set_alias(store, name, CHAMPION, version)
        if challenger is not None and challenger.version == version:
            store.client.delete_registered_model_alias(name, CHALLENGER)
        if old is not None and old.version != version:
            note(store, name, old.version, f"Succeeded as champion by version {version}: {reason}")
        note(store, name, version, f"Champion: {reason}")
        return by_version(store, name, version)


def set_alias(store: Store, name: str, alias: str, version: str) -> None:
    """Gives a version an alias; the version that had it loses it."""
    connection.retried(lambda: store.client.set_registered_model_alias(name, alias, version))


def note(store: Store, name: str, version: str, text: str) -> None:
    """Adds a dated line to a version's description; drops the oldest lines if the column is full."""
    from datetime import UTC, datetime

    card, _, decisions = by_version(store, name, version).description.rstrip().partition(DECISIONS)
    lines = [*decisions.strip().splitlines(), f"- {datetime.now(UTC):%Y-%m-%d %H:%M} UTC: {text}"]
    room = run_tags.LONGEST // 2  # room for the dated lines, if the card is long
    while len(lines) > 1 and sum(map(len, lines)) + len(lines) > room:
        del lines[0]
    ending = f"\n\n{DECISIONS}\n" + "\n".join(lines)[:room] + "\n"
    card = run_tags.short(card.rstrip(), run_tags.LONGEST - len(ending))
    store.client.update_model_version(name, version, description=f"{card}{ending}")


def search(store: Store, name: str) -> list[ModelVersion]:
    """Returns all versions, newest first; none if the name is new."""
    with connection.named(store.uri, model=name):
        rows = store.client.search_model_versions(f"name = '{name}'", max_results=1000)
    return sorted(map(_version, rows), key=lambda version: -int(version.version))


def by_version(store: Store, name: str, version: str) -> ModelVersion:
    """Returns one version.

    Raises:
        TrackingError: none with that number.
    """
    with connection.named(store.uri, model=f"{name} version {version}"):
        return _version(store.client.get_model_version(name, version))


def champion(store: Store, name: str) -> ModelVersion | None:
    """Returns the champion, None if there is none."""
    return by_alias(store, name, CHAMPION)


def by_alias(store: Store, name: str, alias: str) -> ModelVersion | None:
    """Returns the version with an alias, None if there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return _version(store.client.get_model_version_by_alias(name, alias))
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise TrackingError(
            f"tracking store {connection.shown(store.uri)}, model {name}@{alias}: {connection.shown(error.message)}"
        ) from error


def find(store: Store, model_uri: str) -> ModelVersion:
    """Returns the version that `models:/name@alias` or `models:/name/version` names.

    Raises:
        TrackingError: no such model, version or alias; names those that exist.
    """
    match = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", model_uri)
    if not match:
        raise TrackingError(f"model {model_uri!r}: write models:/name@alias or models:/name/version")
    name, alias, number = match.groups()
    known = search(store, name)
    for version in known:
        if version.version == number:
            return version
    named = by_alias(store, name, alias) if alias and known else None
    if named is None:
        models = ", ".join(model.name for model in store.client.search_registered_models()) or "none"
        numbers = ", ".join(version.version for version in known)
        aliases = ", ".join(sorted(store.client.get_registered_model(name).aliases)) if known else ""
        existing = (
            f"{name} has versions {numbers} and aliases {aliases or 'none'}" if known else f"models: {models}"
        )
        raise TrackingError(f"{model_uri}: not in the registry {connection.shown(store.uri)}; {existing}")
    return named


def download(store: Store, model_uri: str, folder: Path | None = None) -> Path:
    """Returns a local folder with the bundle of a model.

    Args:
        store: the registry.
        model_uri: `models:/name@alias`, `models:/name/version`, `models:/m-<id>` or `runs:/<run id>`.
        folder: where to put it; None: its current place if that is local, else a temporary folder.

    Raises:
        TrackingError: no such model, or one that this project did not register.
    """
    bundle = _fetch(store, model_uri, _model_id(store, model_uri), "bundle", folder)
    if not (bundle / INFO_FILE).is_file():
        raise TrackingError(
            f"{model_uri}: holds no {INFO_FILE}; only models registered by this project can be used: "
            "python -m pipeline.register RUN"
        )
    return bundle


def recipe_of(store: Store, version: ModelVersion) -> "Recipe":
    """Returns the recipe in the files of a version.

    Raises:
        TrackingError: its files cannot be fetched.
    """
    from pipeline.config import parse_recipe, read_yaml

    with scratch_folder("recipe") as scratch:
        file = _fetch(store, version.uri, _model_id(store, version.uri), "recipe.yaml", scratch)
        where = f"recipe.yaml of {version.uri}"
        return parse_recipe(read_yaml(file.read_text(encoding="utf-8"), where=where), where=where)


def report_of(store: Store, model_uri: str) -> str | None:
    """Returns the evaluation report that lies with the weights of a model, as JSON; None: registered without one.

    Args:
        store: where from.
        model_uri: see `download`.

    Raises:
        TrackingError: no such model, or its files cannot be fetched.
    """
    model_id = _model_id(store, model_uri)
    with connection.named(store.uri, model=model_uri):
        files = store.client.list_logged_model_artifacts(model_id, "artifacts")
    if not any(PurePosixPath(file.path).name == REPORT_FILE for file in files):
        return None
    with scratch_folder("report") as scratch:
        return _fetch(store, model_uri, model_id, REPORT_FILE, scratch).read_text(encoding="utf-8")


def _fetch(store: Store, model_uri: str, model_id: str, name: str, folder: Path | None) -> Path:
    """Returns a local copy of a file of a logged model, or its path if it is local already."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        model = store.client.get_logged_model(model_id)
        runs.check_not_moved(store.uri, store.client.get_experiment(model.experiment_id))
        file = download_artifacts(
            artifact_uri=f"{model.artifact_location}/artifacts/{name}",
            dst_path=str(folder) if folder else None,
            tracking_uri=store.uri,
            registry_uri=store.uri,
        )
    except (MlflowException, OSError) as error:
        raise TrackingError(
            f"{model_uri}: its files cannot be fetched from {connection.shown(store.uri)}: {error}"
        ) from error
    return Path(file)


def _model_id(store: Store, model_uri: str) -> str:
    """Returns the id of MLflow's logged model that holds the files."""
    if re.fullmatch(r"models:/m-[0-9a-f]+", model_uri):
        return model_uri.removeprefix("models:/")
    if model_uri.startswith("runs:/"):
        run_id = model_uri.removeprefix("runs:/").split("/", 1)[0]
        with connection.named(store.uri, run=run_id):
            outputs = store.client.get_run(run_id).outputs
        models = list(outputs.model_outputs) if outputs else []
        if not models:
            raise TrackingError(
                f"{model_uri}: the run has no model; make one of its run folder: python -m pipeline.register FOLDER"
            )
        return str(models[-1].model_id)
    version = find(store, model_uri)
    if not version.model_id:
        raise TrackingError(
            f"{model_uri}: registered by something else; register a run of this project: "
            "python -m pipeline.register RUN"
        )
    return version.model_id


def _version(row: "Version") -> ModelVersion:
    source = row.source or ""
    return ModelVersion(
        name=row.name,
        version=str(row.version),
        run_id=row.run_id or "",
        model_id=source.removeprefix("models:/") if source.startswith("models:/m-") else "",
        aliases=tuple(row.aliases or ()),
        tags=dict(row.tags or {}),
        description=row.description or "",
    )

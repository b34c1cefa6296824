"""The recipe: all sections together, read from YAML, changed by `key.sub=value` overrides."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, model_validator

from d2ls import storage
from d2ls.class_weights import unknown_classes
from d2ls.errors import ConfigError, nearest
from pipeline.config.base import Section, known_keys
from pipeline.config.data import DataConfig, ShardsConfig
from pipeline.config.evaluate import EvaluateConfig
from pipeline.config.loader import LoaderConfig
from pipeline.config.model import LossConfig, ModelConfig, unmet
from pipeline.config.sweep import Axis, SweepConfig
from pipeline.config.tracking import RegistryConfig, TrackingConfig
from pipeline.config.train import ClusterConfig, RolesConfig, TrainConfig
from pipeline.config.yaml_text import read_yaml
from pipeline.renamed import new_key

_FREE = (
    "cluster.", "tracking.", "registry.", "output_dir", "loader.workers", "loader.cache_dir", "evaluate.", "shards.uri",
    "data.root", "description",
)  # fmt: skip
FREE_ON_RESUME: dict[Literal["training", "sweep"], tuple[str, ...]] = {
    "training": (*_FREE, "sweep.", "train.time_budget", "train.patience", "train.min_delta"),
    "sweep": (*_FREE, "sweep.max_concurrent_trials", "sweep.final", "sweep.num_trials"),
}
"""Keys, or prefixes of keys, that may change when a training or a sweep is resumed.

None of them changes what a step computes; those of `train` only decide when a training ends early. Shards and raw
data may be elsewhere than before: checkpoints know them by their digest. Trials of a sweep that have ended stay
comparable with those to come.
"""

_MAPPINGS = (
    "sweep.space", "sweep.overrides", "sweep.trial_overrides", "data.options", "data.tiling", "loss.class_weights",
)  # fmt: skip
"""Keys whose value is a mapping with keys of its own."""

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
"""The recipes of the project: in the checkout, or beside the installed packages."""

STORAGE_VARIABLE = "D2LS_STORAGE"
"""Environment variable, set by clusters: relative `output_dir` and `shards.uri` of recipe files lie below this URI."""


class Recipe(Section):
    """The complete configuration of a run; the resolved recipe is saved, hashed and logged with the run."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    """Short name of the data set or task; names experiment and registered model."""
    description: str = ""
    """A sentence for the MLflow run and the model card."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of weights, sample order and augmentation."""
    output_dir: str = "runs"
    """Folder or URI below which runs keep checkpoints; shared storage where there is more than one node."""
    data: DataConfig
    shards: ShardsConfig
    roles: RolesConfig = RolesConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    loader: LoaderConfig = LoaderConfig()
    train: TrainConfig = TrainConfig()
    sweep: SweepConfig = SweepConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()
    registry: RegistryConfig = RegistryConfig()

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        contrasts = self.loss.contrastive != "none" and self.model.architecture == "d2ls"
        if contrasts and self.model.dictionary != "dynamic":
            raise ValueError(
                f"loss.contrastive: {self.loss.contrastive} compares dynamic dictionaries, but model.dictionary is "
                f"{self.model.dictionary}; set loss.contrastive=none or model.dictionary=dynamic"
            )
        custom, weights = self.data.custom, self.loss.class_weights
        if custom and isinstance(weights, dict):
            message = unknown_classes(weights, [entry.name for entry in custom.classes])
            if message:
                raise ValueError(message)
        most = self.cluster.worker_range[1]
        if most > self.train.global_batch_size:
            raise ValueError(
                f"cluster.workers: {most} workers share train.global_batch_size={self.train.global_batch_size}; "
                "some would have no sample. Lower the workers or raise the batch"
            )
        if self.model.pretrained and self.model.weights:
            raise ValueError(
                "model.weights and model.pretrained exclude each other; set model.pretrained=false"
            )
        if self.model.weights_by_order and not self.model.weights:
            raise ValueError("model.weights_by_order needs a file in model.weights")
        return self

    @property
    def model_name(self) -> str:
        """Name in the model registry."""
        return self.registry.name or f"d2ls-{self.name}"

    @property
    def experiment(self) -> str:
        """Name of the MLflow experiment."""
        return self.tracking.experiment or self.name

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values, complete with defaults; `parse_recipe` reads them back."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """Returns the complete recipe as YAML."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def anchored(self) -> Self:
        """Returns the recipe with local locations made absolute: workers and trials have other working folders.

        Raises:
            StorageError: a location holds a password.
        """
        locations = {
            "output_dir": self.output_dir,
            "shards.uri": self.shards.uri,
            "data.root": self.data.root,
            "loader.cache_dir": self.loader.cache_dir,
            "model.weights": self.model.weights,
            "model.init": self.model.init,
        }
        for value in filter(None, locations.values()):
            storage.check_no_password(value)
        local = {key: value for key, value in locations.items() if value and storage.is_local(value)}
        return self.with_values({key: str(storage.local_path(value)) for key, value in local.items()})

    def digest(self) -> str:
        """SHA-256 (hex) of all keys that decide what a training computes: a resumed one keeps its digest."""
        deciding = {k: v for k, v in self.flat().items() if not k.startswith(FREE_ON_RESUME["training"])}
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()

    def flat(self) -> dict[str, Any]:
        """Returns dotted keys and scalar values, as logged parameters; lists and free mappings as JSON."""
        return dict(_flatten(self.to_dict()))

    def changes_since(self, before: "Recipe", *, resuming: Literal["training", "sweep"]) -> list[str]:
        """Lists the keys that differ from an earlier recipe and must not, with both values.

        Args:
            before: the earlier recipe.
            resuming: what is resumed with this recipe; see `FREE_ON_RESUME`.
        """
        old, new = before.flat(), self.flat()
        differing = [
            key for key in new if old.get(key) != new[key] and not key.startswith(FREE_ON_RESUME[resuming])
        ]
        return [f"{key} was {old.get(key)!r}, is {new[key]!r}" for key in differing]

    def without_effect(self, keys: Iterable[str]) -> list[str]:
        """Returns a sentence for each of some dotted keys that has no effect in this recipe, with the reason.

        Values that switch something off (none, false, 0) are left out: setting them again is not a mistake.
        """
        flat = self.flat()
        needs = [(key, unmet(key, flat.get)) for key in keys if flat.get(key) not in ("none", False)]
        return [
            f"{key} has no effect: {need[0]} is {flat[need[0]]}, it counts with {' or '.join(map(str, need[1]))}"
            for key, need in needs
            if need
        ]

    def with_values(self, values: Mapping[str, Any], *, where: str = "override") -> Self:
        """Returns a recipe with some dotted keys changed, validated again."""
        return self.parse(set_keys(self.to_dict(), values), where=where)


def recipe_names() -> list[str]:
    """Names of the recipes that come with the project."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Reads a recipe file and applies overrides.

    Args:
        path: a YAML file, or the bare name of one that comes with the project (`demo`, `loveda`, ...).
        overrides: `key.sub=value` strings; the value is read as YAML.

    Raises:
        ConfigError: missing file, broken YAML, unknown key, wrong type or impossible value.
    """
    try:
        file = _find(Path(path))
    except OSError as error:
        raise ConfigError(f"{path}: not a readable file: {error}") from error
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not a readable YAML file: {error}") from error
    values = read_yaml(text, where=str(file))
    if not isinstance(values, dict):
        raise ConfigError(
            f"{file}: a recipe is a mapping of keys to values, this file holds {type(values).__name__}"
        )
    return _below_storage(parse_recipe(apply_overrides(values, overrides), where=str(file)))


def _below_storage(recipe: Recipe) -> Recipe:
    """Moves relative locations into the cluster's storage, where there is one."""
    root = os.environ.get(STORAGE_VARIABLE)
    if not root:
        return recipe
    locations = {"output_dir": recipe.output_dir, "shards.uri": recipe.shards.uri}
    relative = {
        key: uri
        for key, uri in locations.items()
        if storage.is_local(uri) and not uri.startswith(("/", "~", "file:"))
    }
    return recipe.with_values({key: storage.join(root, uri) for key, uri in relative.items()})


def parse_recipe(values: Mapping[str, Any], *, where: str = "recipe") -> Recipe:
    """Validates plain values as a recipe; see `Section.parse`."""
    return Recipe.parse(values, where=where)


def apply_overrides(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Sets `key.sub=value` strings in nested plain values, in their order; returns a new dictionary.

    The value is YAML, or `@file.yaml`: what stands in that file. `@file.yaml` alone sets every key of that file.

    Raises:
        ConfigError: no `=`, a value that is not YAML, or no such file.
    """
    result = dict(values)
    for override in expand_files(overrides):
        key, separator, text = override.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"override {override!r}: write key.sub=value, for instance train.epochs=10")
        text = _read_file(text[1:], override) if text.startswith("@") else text
        value = read_yaml(text, where=f"override {override!r}")
        result = set_keys(result, {key.strip(): value})
    return result


def override_keys(overrides: Iterable[str]) -> list[str]:
    """Returns the dotted keys of `key.sub=value` strings."""
    return [override.partition("=")[0].strip() for override in overrides]


def expand_files(overrides: Iterable[str]) -> list[str]:
    """Replaces each `@file.yaml` among `key.sub=value` strings by one such string for every value in that file.

    Raises:
        ConfigError: no such file, or it holds no mapping.
    """
    expanded = []
    for override in overrides:
        if not override.startswith("@"):
            expanded.append(override)
            continue
        values = read_yaml(_read_file(override[1:], override), where=f"override {override!r}")
        if not isinstance(values, dict):
            raise ConfigError(f"override {override!r}: the file holds no mapping of keys to values")
        expanded += [f"{key}={json.dumps(value)}" for key, value in _leaves(values)]
    return expanded


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Returns dotted keys and values of nested mappings; lists are values."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _read_file(name: str, override: str) -> str:
    """Reads the file of `@name`; one of `recipes/` is found from any folder."""
    path, ours = Path(name), RECIPES.parent / name
    try:
        if not path.is_file() and ours.is_relative_to(RECIPES) and ours.is_file():
            path = ours
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"override {override!r}: the file cannot be read: {error}") from error


def set_keys(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a deep copy of nested values with dotted keys set."""
    result: dict[str, Any] = json.loads(json.dumps(values))
    for key, value in changes.items():
        *parents, last = _path(result, key)
        here = result
        for depth, part in enumerate(parents):
            if here.get(part) is None:
                here[part] = {}
            here = here[part]
            if not isinstance(here, dict):
                raise ConfigError(
                    f"override {key}: {'.'.join(parents[: depth + 1])} is a value, not a section"
                )
        here[last] = value
    return result


def check_key(key: str) -> None:
    """Refuses a dotted key that no recipe has.

    Raises:
        ConfigError: unknown key; names the nearest.
    """
    keys = known_keys(Recipe)
    sections = {".".join(k.split(".")[:n]) for k in keys for n in range(1, k.count(".") + 1)}
    if (
        key not in keys
        and key not in sections
        and not key.startswith(tuple(f"{name}." for name in _MAPPINGS))
    ):
        new = new_key(key)
        raise ConfigError(f"{key}: is now {new}" if new else f"{key}: no such key. {nearest(key, keys)}")


def _path(values: Mapping[str, Any], key: str) -> list[str]:
    """Splits a dotted key; below the free mappings of `sweep` the rest is one key (`sweep.space.model.stages`)."""
    parts = key.split(".")
    if parts[0] == "sweep" and len(parts) > 3 and parts[1] in ("space", "overrides", "trial_overrides"):
        if parts[1] == "space" and parts[-1] in Axis.model_fields:
            return [*parts[:2], ".".join(parts[2:-1]), parts[-1]]
        return [*parts[:2], ".".join(parts[2:])]
    return parts


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    named = RECIPES / f"{path}.yaml"
    if path.suffix == "" and named.is_file():
        return named
    raise ConfigError(
        f"{path}: no such recipe file, and none of the recipes that come with the project. "
        f"{nearest(path.stem, recipe_names())}"
    )


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        key = prefix + name
        if isinstance(value, dict) and key not in _MAPPINGS:
            yield from _flatten(value, f"{key}.")
        else:
            yield key, json.dumps(value) if isinstance(value, list | dict) else value

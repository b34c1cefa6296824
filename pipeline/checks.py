"""Checks that a recipe can be run: shards, roles, storage, model. They start nothing; training runs them first, too."""

import shutil
import uuid
from dataclasses import dataclass
from typing import Literal

from d2ls import storage
from d2ls.class_weights import class_weights
from d2ls.errors import ConfigError, ShardError, StorageError
from d2ls.shards import ShardSet
from pipeline.cluster import address_of
from pipeline.config import Recipe
from pipeline.config.evaluate import boundary_pixels

Status = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        what: what was checked.
        status: `ok`, `warning` (works, but look at it) or `error` (a run would fail).
        text: the result, with the fix if there is a problem.
    """

    what: str
    status: Status
    text: str

    def line(self) -> str:
        """Returns the line as it is printed."""
        return f"{self.status:8}{self.what:11} {self.text}"


def quick(recipe: Recipe) -> list[Finding]:
    """Checks the network, shards, roles and storage from this process, without starting anything.

    Raises:
        D2LSError: the first problem that would make a run fail.
    """
    check_backbone(recipe)
    return [*check_shards(recipe), check_storage(recipe.output_dir)]


def check_shards(recipe: Recipe) -> list[Finding]:
    """Checks that the shards of a recipe fit its roles, the weights of its loss and its evaluation.

    Raises:
        ShardError: no shards, no such split, or an empty one.
        ConfigError: two roles share scenes, class weights do not fit, or a distance has no equivalent in pixels.
    """
    shards = ShardSet.open(recipe.shards.uri)
    settings, resolution = recipe.evaluate, shards.card.ground_sampling_distance
    boundary_pixels(settings.boundary_px, settings.boundary_m, resolution, where=shards.uri)
    return [*check_roles(recipe, shards), *check_class_weights(recipe, shards)]


def check_class_weights(recipe: Recipe, shards: ShardSet) -> list[Finding]:
    """Checks that the weights of the classes in the loss fit the classes and pixels of the training split.

    Raises:
        ConfigError: names a class that does not exist, or one without pixels whose weight follows from them.
    """
    card = shards.card
    pixels = card.splits[recipe.roles.train].class_pixels
    choice, beta = recipe.loss.class_weights, recipe.loss.effective_beta
    weights = class_weights(choice, card.classes.names, pixels, beta=beta)
    if weights is None:
        return []
    shown = ", ".join(
        f"{name} {weight:.3g}" for name, weight in zip(card.classes.names, weights, strict=True)
    )
    return [Finding("loss", "ok", f"class weights: {shown}")]


def check_storage(uri: str) -> Finding:
    """Writes, reads and deletes a small file.

    Raises:
        StorageError: one of these fails; the message tells what to do.
    """
    probe, content = storage.join(uri, f".probe-{uuid.uuid4().hex}"), uuid.uuid4().bytes
    try:
        storage.make_folder(uri)
        storage.write_bytes(probe, content)
        if storage.read_bytes(probe) != content:
            raise StorageError(f"{probe}: reads other bytes than were written")
        storage.delete(probe)
    except StorageError as error:
        raise StorageError(
            f"output_dir={uri} cannot be used: {error}. Give access, or set another output_dir"
        ) from error
    free = ""
    if storage.is_local(uri):
        free = f", {shutil.disk_usage(storage.local_path(uri)).free / 2**30:.1f} GiB free"
    return Finding("storage", "ok", f"{uri} can be written and read{free}")


def check_roles(recipe: Recipe, shards: ShardSet) -> list[Finding]:
    """Checks that the splits of the roles exist, hold samples, and share no scene.

    Raises:
        ShardError: no such split, or an empty one.
        ConfigError: two roles share scenes, and the protocol of the data set is not `paper`.
    """
    roles = {"train": recipe.roles.train, "val": recipe.roles.val, "test": recipe.roles.test}
    scenes: dict[str, set[str]] = {}
    for role, split in roles.items():
        if role == "test" and split not in shards.splits:
            continue  # e.g. a test split whose labels are withheld; evaluation refuses it
        rows = shards.rows(split)
        if not len(rows):
            raise ShardError(
                f"{shards.uri}: split {split!r} (roles.{role}) holds no sample; shard the data again"
            )
        scenes[role] = set(rows["scene"].to_pylist())
    shared = [
        (first, second, sorted(scenes[first] & scenes[second]))
        for first, second in (("train", "val"), ("train", "test"), ("val", "test"))
        if first in scenes and second in scenes and scenes[first] & scenes[second]
    ]
    counts = ", ".join(
        f"{shards.card.splits[split].samples} {split}" for split in roles.values() if split in shards.splits
    )
    findings = [Finding("shards", "ok", f"{shards.uri}: {shards.card.name}, samples: {counts}")]
    for first, second, names in shared:
        text = (
            f"roles.{first}={roles[first]} and roles.{second}={roles[second]} share {len(names)} scene(s), "
            f"e.g. {names[0]}: scores would be too high"
        )
        if shards.card.protocol != "paper":
            raise ConfigError(f"{text}. Split by scene: data.protocol=clean, or another split in roles")
        findings.append(Finding("roles", "warning", f"{text}; the paper protocol splits like that"))
    return findings


def check_architecture(recipe: Recipe) -> None:
    """Refuses a baseline whose library is missing on this machine."""
    if recipe.model.architecture != "d2ls":
        from d2ls.models.baselines import check_library  # imports torch: `train --help` stays quick

        check_library(recipe.model.architecture)


def check_backbone(recipe: Recipe) -> Finding:
    """Checks that the network can be built here, and that the weights it starts from are available.

    The hub is asked only if the workers run on this machine: those of a cluster have their own network and cache.
    """
    import timm  # imports torch: `train --help` stays quick

    from d2ls.models.backbone import check_hub

    check_architecture(recipe)
    name = recipe.model.backbone
    if not timm.is_model(name.split(".")[0]):
        close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:8])
        raise ConfigError(f"model.backbone={name}: timm knows no such backbone; some it knows: {close}")
    if recipe.model.weights and not storage.exists(recipe.model.weights):
        raise ConfigError(f"model.weights={recipe.model.weights}: no such file")
    if recipe.model.pretrained and not address_of(recipe.cluster):
        check_hub(name)
    if recipe.model.init:
        from pipeline.models.initialize import check_initial

        check_initial(recipe.model.init, name, tracking_uri=recipe.tracking.uri)
    source = "timm's weights, fetched on first use" if recipe.model.pretrained else "no pretrained weights"
    source = recipe.model.init or recipe.model.weights or source
    return Finding("model", "ok", f"{recipe.model.architecture}, {name}, {source}")

"""What a run logs in addition to metrics: tags for the run list, versions, hardware, code, a description."""

import getpass
import os
import platform
import socket
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from pipeline.config.model import unmet

if TYPE_CHECKING:
    from d2ls.shards import DatasetCard
    from pipeline.config import Recipe

PACKAGES = ("torch", "timm", "ray", "mlflow", "webdataset", "albumentations", "numpy", "pyarrow", "rasterio")


LONGEST = 5000
CUT = "\n\n(cut: MLflow keeps 5000 characters here)"


def short(text: str, limit: int = LONGEST) -> str:
    """Cuts a text to the length that the columns of every database hold."""
    return text if len(text) <= limit else f"{text[: limit - len(CUT)]}{CUT}"


def run_tags(recipe: "Recipe", card: "DatasetCard", kind: str) -> dict[str, str]:
    """Returns the tags that sort and filter the run list.

    Args:
        recipe: the resolved recipe.
        card: card of the shards.
        kind: `sweep`, `trial` or `training`.
    """
    return {
        "kind": kind,
        "dataset": card.name,
        "dataset_digest": card.digest,
        "protocol": card.protocol,
        **network_tags(recipe, swept=kind == "sweep"),
        "workers": recipe.cluster.workers_text,
        "hardware": hardware(),
        "recipe_digest": recipe.digest(),
        "packages": packages(),
        "mlflow.source.name": f"pipeline ({recipe.name})",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
        **code_tags(),
    }


def network_tags(recipe: "Recipe", *, swept: bool = False) -> dict[str, str]:
    """Returns the tags that tell networks and their trainings apart; `-` if a key has no effect.

    Args:
        recipe: the resolved recipe.
        swept: whether this is a sweep, in which the swept keys have no single value.
    """
    keys = {
        "architecture": "model.architecture",
        "backbone": "model.backbone",
        "dictionary": "model.dictionary",
        "stages": "model.stages",
        "contrastive": "loss.contrastive",
        "temperature": "loss.temperature",
        "seed": "seed",
    }
    flat = recipe.flat()
    tags = {name: "-" if unmet(key, flat.get) else str(flat[key]) for name, key in keys.items()}
    return {
        name: "swept" if swept and keys[name] in recipe.sweep.space else tag for name, tag in tags.items()
    }


def hardware() -> str:
    """Returns host, processor count and memory of this machine."""
    gigabytes = psutil.virtual_memory().total / 2**30
    return f"{socket.gethostname()}: {os.cpu_count()} CPUs ({platform.machine()}), {gigabytes:.0f} GiB"


def packages() -> str:
    """Returns the versions of Python and of the packages that the numbers depend on, in one line."""
    versions = [f"python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(versions)


def all_packages() -> str:
    """Returns all installed distributions, one `name==version` per line."""
    lines = {f"{item.metadata['Name']}=={item.version}" for item in metadata.distributions()}
    return "\n".join(sorted(lines, key=str.lower)) + "\n"


def code_tags() -> dict[str, str]:
    """Returns the commit of the checkout and whether it has changes; nothing without git."""
    file = Path(__file__).resolve()
    folder = file.parent
    if not _git(folder, "ls-files", file.name):  # installed into an environment inside another checkout
        return {}
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"mlflow.source.git.commit": commit, "git": commit[:10], "git_dirty": str(bool(changes)).lower()}


def description(recipe: "Recipe", card: "DatasetCard", kind: str) -> str:
    """Returns a few lines of Markdown: the kind of run, its data and its settings."""
    train, val = (card.splits.get(split) for split in (recipe.roles.train, recipe.roles.val))
    part = f"{recipe.data.fraction:g} of " if recipe.data.fraction < 1 else ""
    counts = ", ".join(
        f"{part if role == 'train' else ''}{split.samples} samples for {role}"
        for role, split in (("train", train), ("val", val))
        if split
    )
    space = ", ".join(f"`{key}`" for key in recipe.sweep.space)
    what = f"Sweep over {space} ({recipe.sweep.search})" if kind == "sweep" else f"One {kind}"
    tags = network_tags(recipe, swept=kind == "sweep")
    network = ", ".join(f"{name} {value}" for name, value in tags.items() if value != "-")
    lines = [
        f"{what} on **{card.name}** ({card.protocol} protocol, {card.classes.num_classes} classes).",
        recipe.description,
        f"- data: {counts or 'see the card'}; digest `{card.digest[:12]}`; licence: {card.license}",
        f"- network: {network}",
        f"- training: {recipe.train.length}, batch {recipe.train.global_batch_size}, "
        f"learning rate {recipe.train.optimizer.lr}, {recipe.train.precision}",
    ]
    return "\n".join(line for line in lines if line)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may have a user id without a name
        return str(os.getuid())


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()

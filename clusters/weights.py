"""Pretrained backbone weights: fetched once by the head, kept in the cluster's storage, read offline by the workers.

    python clusters/weights.py push loveda potsdam     on the head: fetch what these recipes start from, then store it
    python clusters/weights.py push                    for all recipes
    python clusters/weights.py push --offline-ok       only a message if the hub cannot be reached
    python clusters/weights.py pull                    on a worker: copy them, so that it reads them offline

The stored files are the Hugging Face cache (HF_HOME), so timm finds the weights under their usual names.
"""

import argparse
import contextlib
import os
import socket
import sys
from pathlib import Path

from d2ls import storage

HUB = ("huggingface.co", 443)


def cache_folder() -> Path:
    """Returns the folder where huggingface_hub keeps downloads."""
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")


def stored(uri: str) -> str:
    """Returns the folder of the weights in the storage."""
    return storage.join(uri, "weights")


def backbones(recipes: list[str]) -> list[str]:
    """Returns the pretrained backbones that recipes start from."""
    from pipeline.config import load_recipe

    models = [recipe.model for recipe in map(load_recipe, recipes)]
    return sorted({model.backbone for model in models if model.pretrained})


def fetch(names: list[str]) -> None:
    """Downloads backbones that the cache does not hold."""
    import timm

    for name in names:
        timm.create_model(name, pretrained=True, features_only=True)


def hub_answers() -> bool:
    """Returns whether the hub can be reached."""
    with contextlib.suppress(OSError), socket.create_connection(HUB, timeout=10):
        return True
    return False


def push(uri: str, cache: Path) -> int:
    """Copies the cache to the storage, except files that are there already; returns how many were copied.

    Copies the parts that an offline reader needs: names (refs) and files (snapshots), with links resolved.
    """
    copied = 0
    for file in sorted(cache.glob("models--*/**/*")):
        part = file.relative_to(cache)
        target = storage.join(uri, part.as_posix())
        if file.is_file() and part.parts[1] in ("refs", "snapshots") and not _same(target, file):
            storage.upload(file.resolve(), target)
            copied += 1
    return copied


def pull(uri: str, cache: Path) -> int:
    """Copies the weights to the cache, except files that are there already; returns how many were copied."""
    root = storage.resolve(uri)[1].rstrip("/") + "/"
    copied = 0
    for entry in storage.list_files(uri, recursive=True):
        if not entry.is_file:
            continue
        part = entry.path.removeprefix(root)
        target = cache / part
        if not target.exists() or target.stat().st_size != entry.size:
            storage.write_bytes(target, storage.read_bytes(storage.join(uri, part)))
            copied += 1
    return copied


def _same(uri: str, file: Path) -> bool:
    state = storage.info(uri)
    return bool(state.is_file and state.size == file.stat().st_size and "refs" not in file.parts)


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["push", "pull"])
    parser.add_argument("recipes", nargs="*", help="recipes whose backbones are fetched (default: all)")
    parser.add_argument("--storage", default=os.environ.get("D2LS_STORAGE"), help="default: D2LS_STORAGE")
    parser.add_argument(
        "--offline-ok", action="store_true", help="with push: no error if the hub cannot be reached"
    )
    options = parser.parse_args()
    if not options.storage:
        parser.error("give --storage, or set D2LS_STORAGE")
    uri, cache = stored(options.storage), cache_folder()
    pulled = pull(uri, cache)
    if options.what == "pull":
        print(f"{pulled} file(s) from {uri}")  # noqa: T201
        return 0
    from pipeline.config import recipe_names

    names = backbones(options.recipes or recipe_names())
    if options.offline_ok and not hub_answers():
        print(  # noqa: T201
            f"{HUB[0]} cannot be reached: trainings from {', '.join(names)} work only if {uri} or the recipe's "
            "model.weights has them; model.pretrained=false trains from scratch"
        )
        return 0
    fetch(names)
    print(f"{', '.join(names) or 'no pretrained backbone'}: {push(uri, cache)} file(s) to {uri}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())

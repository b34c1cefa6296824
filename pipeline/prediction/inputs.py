"""Which scenes a person means, and where the map of each goes."""

import os
from collections.abc import Iterable
from pathlib import Path

from pyarrow import fs

from d2ls import storage
from d2ls.errors import ConfigError, DataError
from sharding.files import natural
from sharding.raster.scene import IMAGE_SUFFIXES

MAP_SUFFIXES = (".tif", ".tiff", ".png")
Job = tuple[str, str]
"""A scene, and its map to be."""


def list_jobs(source: str, target: str, kind: str = "tif") -> list[Job]:
    """Lists scenes and their maps.

    Args:
        source: an image, a folder (with all folders below it), a glob pattern; local, or (but for patterns) a URI.
        target: a file for a single scene, else a folder, in which the layout of the source is kept.
        kind: suffix of maps in a folder, `tif` or `png`.

    Raises:
        DataError: no image there.
        ConfigError: a map would replace a scene or another map, one file is to hold many maps, or a name is empty
            or of another format.
    """
    if not source or not target:
        raise ConfigError(f"{'INPUT' if not source else 'OUTPUT'} is empty; name an image or a folder")
    suffix = Path(target).suffix.lower()
    if suffix in IMAGE_SUFFIXES and suffix not in MAP_SUFFIXES:
        raise ConfigError(f"{target}: maps are written as {', '.join(MAP_SUFFIXES)}, not {suffix}")
    if is_pattern(source):
        top = _fixed_part(source)
        found = Path(top).glob(source if top == "." else source[len(top) :].lstrip("/"))
        jobs = _into(target, top, map(str, found), kind)
    elif storage.info(source).type == fs.FileType.Directory:
        jobs = _into(target, source, _below(source), kind)
    elif suffix in MAP_SUFFIXES:
        jobs = [(source, target)]
    else:
        jobs = _into(target, source.rpartition("/")[0], [source], kind)
    if not jobs:
        raise DataError(f"{source}: no image here. Formats: {', '.join(IMAGE_SUFFIXES)}")
    if len(jobs) > 1 and suffix in MAP_SUFFIXES:
        raise ConfigError(f"{target}: {len(jobs)} scenes need a folder, not one file")
    _refuse_clashes(jobs)
    return jobs


def is_pattern(source: str) -> bool:
    """Says whether a local source is a glob pattern (a file of that very name wins)."""
    return storage.is_local(source) and any(sign in source for sign in "*?[") and not Path(source).exists()


def _fixed_part(pattern: str) -> str:
    """The folder before the first part that holds a wildcard."""
    parts = []
    for part in pattern.split("/")[:-1]:
        if any(sign in part for sign in "*?["):
            break
        parts.append(part)
    return "/".join(parts) or ("/" if pattern.startswith("/") else ".")


def _below(folder: str) -> list[str]:
    entries = storage.list_files(folder, recursive=True)
    files = [entry.path for entry in entries if entry.type == fs.FileType.File]
    if storage.is_local(folder):
        return files
    _, inside = storage.resolve(folder)
    return [storage.join(folder, path[len(inside.rstrip("/")) + 1 :]) for path in files]


def _into(target: str, top: str, sources: Iterable[str], kind: str) -> list[Job]:
    jobs = []
    for source in sorted(sources, key=natural):
        if Path(source).suffix.lower() in IMAGE_SUFFIXES and not Path(source).name.startswith("."):
            relative = _relative(source, top)
            jobs.append((source, storage.join(target, str(Path(relative).with_suffix(f".{kind}")))))
    return jobs


def _relative(source: str, top: str) -> str:
    if storage.is_local(source):
        return os.path.relpath(storage.local_path(source), storage.local_path(top or "."))
    return source[len(top.rstrip("/")) + 1 :]


def _refuse_clashes(jobs: list[Job]) -> None:
    sources = {_identity(source) for source, _ in jobs}
    seen: dict[str, str] = {}
    for source, target in jobs:
        if _identity(target) in sources:
            raise ConfigError(f"{target}: the map would replace a scene; name another output")
        if target in seen:
            raise ConfigError(
                f"{target}: would be the map of both {seen[target]} and {source}; map them one by one"
            )
        seen[target] = source


def _identity(uri: str) -> str:
    return os.path.realpath(storage.local_path(uri)) if storage.is_local(uri) else uri

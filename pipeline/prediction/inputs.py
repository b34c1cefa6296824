"""The scenes of INPUT, and where the map of each goes."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pyarrow import fs

from d2ls import storage
from d2ls.errors import ConfigError, DataError
from pipeline.prediction.provenance import read_provenance
from pipeline.prediction.tags import MOSAIC_TAG, read_tags
from sharding.files import is_hidden, natural, refuse_unreadable, require_utf8
from sharding.raster.scene import IMAGE_SUFFIXES

MAP_SUFFIXES = (".tif", ".tiff", ".png")
READERS = 16
"""Number of files whose headers are read at once."""

Job = tuple[str, str]
"""A scene, and its map to make."""


def list_jobs(source: str, target: str, kind: str = "tif") -> list[Job]:
    """Lists scenes and their maps.

    Hidden files and folders are left out, as in `pipeline.shard`; so are maps of this program, wherever they are.

    Args:
        source: an image, a folder (with all folders below it) or a glob pattern; local, or (except for patterns) a URI.
        target: a file for a single scene, else a folder, in which the layout of the source is kept.
        kind: suffix of maps in a folder, `tif` or `png`.

    Raises:
        DataError: no image there.
        ConfigError: a map would replace a scene or another map, one file is named for many maps, or a name is empty or
            has another format.
    """
    if not source or not target:
        raise ConfigError(f"{'INPUT' if not source else 'OUTPUT'} is empty; name an image or a folder")
    for path in (source, target):
        require_utf8(path)
    suffix = Path(target).suffix.lower()
    if suffix in IMAGE_SUFFIXES and suffix not in MAP_SUFFIXES:
        raise ConfigError(f"{target}: maps are written as {', '.join(MAP_SUFFIXES)}, not {suffix}")
    _check_kind(target, file=suffix in MAP_SUFFIXES)
    single = not is_pattern(source) and storage.info(source).type != fs.FileType.Directory
    if single:
        if storage.info(source).type == fs.FileType.NotFound:
            raise DataError(
                f"{source}: no such file or folder. Name an image, a folder or a quoted pattern as INPUT"
            )
        if read_provenance(source) is not None:
            raise ConfigError(f"{source}: is a map that was made here, not an image; name the image as INPUT")
        top = source.rpartition("/")[0]
        jobs = [(source, target)] if suffix in MAP_SUFFIXES else _into(target, top, [source], kind)
    else:
        top, images = _matches(source)
        jobs = _into(target, top, _without_maps(images), kind)
    if not jobs:
        raise DataError(
            f"{source}: no image here (hidden files and maps that were made here do not count). Name an image, a "
            f"folder or a quoted pattern. Formats: {', '.join(IMAGE_SUFFIXES)}"
        )
    if len(jobs) > 1 and suffix in MAP_SUFFIXES:
        raise ConfigError(
            f"{target}: {len(jobs)} scenes need a folder, not one file; name a folder, e.g. maps/"
        )
    if suffix in MAP_SUFFIXES:
        jobs = [(jobs[0][0], target)]
    _refuse_clashes(jobs)
    return jobs


def list_images(source: str) -> list[str]:
    """Lists the images of a folder or pattern, without hidden files and maps of this program.

    Raises:
        DataError: none there.
    """
    images = sorted(_without_maps(_matches(source)[1]), key=natural)
    if not images:
        raise DataError(f"{source}: no image here. Name a folder or a quoted pattern of tiles as INPUT")
    return images


def is_pattern(source: str) -> bool:
    """Returns whether a local source is a glob pattern, and not an existing file."""
    return storage.is_local(source) and any(sign in source for sign in "*?[") and not Path(source).exists()


def _check_kind(target: str, *, file: bool) -> None:
    """Refuses a folder where a file is needed, and the other way round, before any work is done.

    Raises:
        ConfigError: the message tells what is there.
    """
    kind = storage.info(target).type
    if file and kind == fs.FileType.Directory:
        raise ConfigError(
            f"{target}: is a folder with the name of a map. Name a file in it ({storage.join(target, 'map.tif')}), or "
            "a folder without such a suffix"
        )
    if not file and kind == fs.FileType.File:
        raise ConfigError(f"{target}: is a file; name a map (.tif, .png) or a folder as OUTPUT")


def _matches(source: str) -> tuple[str, Iterable[str]]:
    """Returns the folder of a source's files, and the files."""
    if not is_pattern(source):
        return source, _below(source)
    top = _fixed_part(source)
    pattern = source if top == "." else source[len(top) :].lstrip("/")
    return top, (
        str(file) for file in Path(top).glob(pattern) if not is_hidden(file.relative_to(top).as_posix())
    )


def _fixed_part(pattern: str) -> str:
    """Returns the folder before the first part with a wildcard."""
    parts = []
    for part in pattern.split("/")[:-1]:
        if any(sign in part for sign in "*?["):
            break
        parts.append(part)
    return "/".join(parts) or ("/" if pattern.startswith("/") else ".")


def _below(folder: str) -> Iterator[str]:
    if storage.is_local(folder):
        yield from _below_local(storage.local_path(folder))
        return
    _, inside = storage.resolve(folder)
    for entry in storage.list_files(folder, recursive=True):
        relative = entry.path[len(inside.rstrip("/")) + 1 :]
        if entry.type == fs.FileType.File and not is_hidden(relative):
            yield storage.join(folder, relative)


def _below_local(folder: Path) -> Iterator[str]:
    visited = {folder.resolve()}
    for here, folders, names in os.walk(folder, followlinks=True, onerror=refuse_unreadable):
        kept = []
        for name in sorted(folders):
            real = Path(here, name).resolve()
            if not is_hidden(name) and real not in visited:  # a link can lead back to its own folder
                visited.add(real)
                kept.append(name)
        folders[:] = kept
        yield from (str(Path(here, name)) for name in names if not is_hidden(name))


def _without_maps(files: Iterable[str]) -> list[str]:
    images = [file for file in files if Path(file).suffix.lower() in IMAGE_SUFFIXES]
    for file in images:
        require_utf8(file)
    with ThreadPoolExecutor(READERS) as pool:
        ours = pool.map(_is_ours, images)
        return [file for file, made_here in zip(images, ours, strict=True) if not made_here]


def _is_ours(file: str) -> bool:
    """Returns whether a file is a map or a mosaic of this program."""
    return read_provenance(file) is not None or MOSAIC_TAG in read_tags(file)


def _into(target: str, top: str, sources: Iterable[str], kind: str) -> list[Job]:
    jobs = []
    for source in sorted(sources, key=natural):
        if Path(source).suffix.lower() in IMAGE_SUFFIXES:
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
        stem = target.rpartition(".")[0]
        for file in (target, f"{stem}.probabilities.tif", f"{stem}.confidence.tif", f"{stem}.overlay.jpg"):
            if _identity(file) in sources:
                raise ConfigError(f"{file}: the map would replace a scene; name another OUTPUT")
        if target in seen:
            raise ConfigError(
                f"{target}: would be the map of both {seen[target]} and {source}; map them one by one"
            )
        seen[target] = source


def same_file(first: str, second: str) -> bool:
    """Returns whether two locations are the same file, whatever their names."""
    return _identity(first) == _identity(second)


def _identity(uri: str) -> str | tuple[int, int]:
    """Identifies a file under all its names; for a file that does not exist yet by its resolved path."""
    if not storage.is_local(uri):
        return uri
    path = os.path.realpath(storage.local_path(uri))  # also through folders that do not exist yet
    try:
        status = Path(path).stat()
    except OSError:
        return path
    return status.st_dev, status.st_ino

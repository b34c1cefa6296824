"""Submissions to the servers of two benchmarks: LoveDA (ids in a flat zip) and UAVid (colours in folders of sequences).

They are written and checked by the same rules. A check lists all problems, not only the first one.
"""

import io
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from d2ls.errors import ConfigError, DataError, StorageError
from d2ls.labels import IGNORE, ClassTable
from d2ls.scratch import atomic_write
from sharding.files import natural
from sharding.sources.loveda import LoveDA
from sharding.sources.uavid import UAVid

Size = tuple[int, int]
"""Height and width."""

SHOWN = 20
"""Largest number of problems that an error lists; the rest is counted."""


@dataclass(frozen=True)
class Rules:
    """Rules of a server.

    Attributes:
        name: of the benchmark.
        classes: ids and colours.
        colors: whether pixels are colours (RGB) instead of ids (one channel).
        names: pattern that the path of every file in the submission matches.
        count: number of files.
        sizes: allowed sizes.
        entry: returns the path in the submission for the path of a test image.
    """

    name: str
    classes: ClassTable
    colors: bool
    names: str
    count: int
    sizes: tuple[Size, ...]
    entry: Callable[[str], str]


def _loveda_entry(image: str) -> str:
    return PurePosixPath(image).with_suffix(".png").name


def _uavid_entry(image: str) -> str:
    parts = PurePosixPath(image).with_suffix(".png").parts
    if len(parts) < 3 or parts[-2] != "Images" or not re.fullmatch(r"seq\d+", parts[-3]):
        raise DataError(
            f"{image}: UAVid images lie at seqN/Images/NNNNNN.png; name the unpacked test folder as INPUT"
        )
    return f"{parts[-3]}/Labels/{parts[-1]}"


_UAVID_TEST = "|".join(str(number) for number in (*range(21, 31), *range(38, 43)))

RULES: Mapping[str, Rules] = {
    "loveda": Rules("LoveDA", LoveDA.classes, False, r"\d+\.png", 1796, ((1024, 1024),), _loveda_entry),
    "uavid": Rules(
        "UAVid", UAVid.classes, True, rf"seq({_UAVID_TEST})/Labels/000[0-9]00\.png", 150,
        ((2160, 3840), (2160, 4096)), _uavid_entry,
    ),
}  # fmt: skip


def encode(rules: Rules, labels: npt.NDArray[np.uint8]) -> bytes:
    """Encodes class ids (H W) as the PNG that the server takes.

    Raises:
        DataError: a pixel has no class.
    """
    if (labels >= rules.classes.num_classes).any():
        left = int((labels == IGNORE).sum())
        raise DataError(
            f"{left or 'some'} pixels have no class; {rules.name} wants one for every pixel. Take the test images as "
            "they are published, without nodata or transparency"
        )
    pixels = rules.classes.colorize(labels) if rules.colors else labels
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def write(
    rules: Rules,
    target: Path,
    entries: Iterable[tuple[str, npt.NDArray[np.uint8]]],
    *,
    expected: Mapping[str, Size] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a submission: a zip if the target ends in `.zip`, else a folder.

    Args:
        rules: rules of the benchmark.
        target: written complete or not at all.
        entries: path in the submission, and class ids H W.
        expected: path and size of every test image, by which the submission is checked before it is renamed.
        overwrite: replace an existing zip.

    Raises:
        ConfigError: it exists already.
        DataError: a pixel has no class, or the check finds problems.
        StorageError: it cannot be written.
    """
    refuse_existing(target, overwrite=overwrite)
    zipped = target.suffix.lower() == ".zip"
    try:
        with atomic_write(target, scratch="submission", sync=False) as partial:
            (_write_zip if zipped else _write_folder)(rules, partial, entries)
            if expected is not None:
                check(rules, partial, expected, name=str(target))
    except OSError as error:
        raise StorageError(f"{target}: cannot be written: {error}") from error


def refuse_existing(target: Path, *, overwrite: bool = False) -> None:
    """Refuses to replace a file with the name of the submission; folders are never replaced.

    Raises:
        ConfigError: it exists already.
    """
    is_file = target.suffix.lower() == ".zip" and target.is_file()
    if target.exists() and not (is_file and overwrite):
        way = ", or replace it with --overwrite" if is_file else " or delete it"
        raise ConfigError(f"{target}: exists already; name another OUTPUT{way}")


def _write_zip(rules: Rules, target: Path, entries: Iterable[tuple[str, npt.NDArray[np.uint8]]]) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:  # PNG is compressed already
        for name, labels in entries:
            stamp = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            archive.writestr(stamp, encode(rules, labels))


def _write_folder(rules: Rules, target: Path, entries: Iterable[tuple[str, npt.NDArray[np.uint8]]]) -> None:
    for name, labels in entries:
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(rules, labels))


def check(rules: Rules, target: Path, expected: Mapping[str, Size] | None = None, *, name: str = "") -> None:
    """Checks a submission.

    Args:
        rules: of the benchmark.
        target: zip or folder.
        expected: path and size of every file, from the test images; None: by the rules alone.
        name: its name in the message; empty: `target`.

    Raises:
        DataError: lists all problems.
    """
    listed = problems(rules, target, expected)
    if listed:
        shown = "\n".join(f"  {problem}" for problem in listed[:SHOWN])
        more = f"\n  and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
        raise DataError(
            f"{name or target}: {rules.name} would not take this, {len(listed)} problem(s):\n{shown}{more}"
        )


def problems(rules: Rules, target: Path, expected: Mapping[str, Size] | None = None) -> list[str]:
    """Lists the problems of a submission."""
    listed = []
    try:
        for problem in _problems(rules, target, expected):
            listed.append(problem)  # noqa: PERF402 - what came before an error is kept
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:  # the last one: a password
        listed.append(f"cannot be read: {error}")
    return listed


def _problems(rules: Rules, target: Path, expected: Mapping[str, Size] | None) -> Iterator[str]:
    seen: Counter[str] = Counter()
    for name, content in _members(target):
        if content is None:
            yield f"{name}: a folder{', the zip must be flat' if not rules.colors else ''}"
            continue
        seen[name] += 1
        if not re.fullmatch(rules.names, name):
            yield f"{name}: not a name that {rules.name} knows ({rules.names})"
        elif expected is not None and name not in expected:
            yield f"{name}: there is no such test image"
        yield from _image_problems(rules, name, content, (expected or {}).get(name))
    yield from (f"{name}: is there {count} times" for name, count in seen.items() if count > 1)
    yield from (f"{name}: missing" for name in sorted(set(expected or ()) - set(seen), key=natural))
    if len(seen) != rules.count:
        yield f"{len(seen)} files, {rules.count} are expected"


def _members(target: Path) -> Iterator[tuple[str, bytes | None]]:
    if target.is_dir():
        for file in sorted(path for path in target.rglob("*") if path.is_file()):
            yield file.relative_to(target).as_posix(), file.read_bytes()
        return
    with zipfile.ZipFile(target) as archive:
        for info in archive.infolist():
            yield info.filename, None if info.is_dir() else archive.read(info)


def _image_problems(rules: Rules, name: str, content: bytes, size: Size | None) -> Iterator[str]:
    mode = "RGB" if rules.colors else "L"
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.format != "PNG" or image.mode != mode:
                yield f"{name}: {image.format} of mode {image.mode}, a PNG of mode {mode} is expected"
                return
            pixels = np.asarray(image)
    except UnidentifiedImageError:
        yield f"{name}: not an image"
        return
    except (OSError, SyntaxError, ValueError) as error:
        yield f"{name}: not a readable image ({error})"
        return
    sizes = (size,) if size else rules.sizes
    if pixels.shape[:2] not in sizes:
        expected = " or ".join(f"{height} x {width}" for height, width in sizes)
        yield f"{name}: {pixels.shape[0]} x {pixels.shape[1]} pixels, {expected} are expected"
    yield from _value_problems(rules, name, pixels)


def _value_problems(rules: Rules, name: str, pixels: npt.NDArray[np.uint8]) -> Iterator[str]:
    if rules.colors:
        packed = pixels.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)
        known = {red << 16 | green << 8 | blue for red, green, blue in rules.classes.palette}
        strange = [value for value in np.unique(packed).tolist() if value not in known]
        words = [f"({value >> 16}, {value >> 8 & 255}, {value & 255})" for value in strange[:3]]
    else:
        strange = [value for value in np.unique(pixels).tolist() if value >= rules.classes.num_classes]
        words = [str(value) for value in strange[:3]]
    if strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        yield f"{name}: holds {', '.join(words)}{more}, which is no class of {rules.name}"

"""Zip archives of data sets: read in place, never unpacked; dangerous members are refused."""

import hashlib
import stat
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from d2ls.errors import DataError

MAX_RATIO = 200
"""Compression ratio above which a large member is refused as a decompression bomb."""

MAX_PLAIN_BYTES = 256 * 2**20
"""Members up to this size may have any compression ratio: flat label images compress very well."""

MAX_MEMBER_BYTES = 32 * 2**30
"""Size above which a member is refused."""


def list_members(archive: Path) -> dict[str, zipfile.ZipInfo]:
    """Lists the files in a zip archive after checking every one of them.

    Returns:
        Entry of each member by its path (forward slashes, as stored), without folders.

    Raises:
        DataError: not a zip archive; or a member with an absolute or parent path, a link, an encrypted member, a name
            given twice, a decompression bomb. Names archive and member.
    """
    members: dict[str, zipfile.ZipInfo] = {}
    for entry in _open(str(archive), archive.stat().st_mtime_ns).infolist():
        reason = _refusal(entry) or ("the name occurs twice" if entry.filename in members else "")
        if reason:
            raise DataError(
                f"{archive}: member {entry.filename!r} is refused: {reason}. "
                "Get the archive from its publisher again, or inspect and unpack it yourself."
            )
        if not entry.is_dir():
            members[entry.filename] = entry
    return members


def read_member(archive: str, member: str) -> bytes:
    """Reads one member whole.

    Raises:
        DataError: missing member, or damaged data.
    """
    with open_member(archive, member) as stream:
        try:
            return stream.read()
        except (OSError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{archive}!{member}: damaged in the archive: {error}") from error


def open_member(archive: str, member: str) -> BinaryIO:
    """Opens one member for reading.

    Raises:
        DataError: no such member, or an unknown compression method.
    """
    try:
        return cast(BinaryIO, _open(archive, Path(archive).stat().st_mtime_ns).open(member))
    except (KeyError, OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise DataError(f"{archive}!{member}: cannot be read from the archive: {error}") from error


def check_md5(archive: Path, expected: str) -> None:
    """Compares an archive with its published MD5 sum.

    Raises:
        DataError: the sums differ.
    """
    with archive.open("rb") as stream:
        actual = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if actual != expected:
        raise DataError(
            f"{archive}: MD5 is {actual}, the published archive has {expected}: the download is incomplete or another "
            "version. Download it again; if it differs on purpose, set data.check_archives=false."
        )


def _refusal(entry: zipfile.ZipInfo) -> str:
    path = PurePosixPath(entry.filename)
    if path.is_absolute() or "\\" in entry.filename or ":" in entry.filename.split("/")[0]:
        return "absolute path"
    if ".." in path.parts:
        return "path into a parent folder"
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a link or special file"
    if entry.flag_bits & 1:
        return "encrypted"
    ratio = entry.file_size / max(entry.compress_size, 1)
    if entry.file_size > MAX_MEMBER_BYTES or (entry.file_size > MAX_PLAIN_BYTES and ratio > MAX_RATIO):
        return f"decompression bomb ({entry.compress_size} bytes unpack to {entry.file_size})"
    return ""


@lru_cache(maxsize=8)
def _open(archive: str, modified: int) -> zipfile.ZipFile:
    """Opens an archive and keeps it open, with one handle per process, because its list of members is slow to read."""
    del modified  # part of the cache key, so that a replaced archive is opened again
    try:
        return zipfile.ZipFile(archive)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{archive}: not a readable zip archive: {error}") from error

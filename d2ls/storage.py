"""Files by URI, on a local disk or in an object store, through pyarrow.fs.

A location is a plain path (`runs/a`), `file:///...`, `s3://bucket/...` or any scheme that `pyarrow.fs` knows. An S3
server other than AWS is set by AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, as for the AWS tools.
"""

import contextlib
import io
import os
import posixpath
import re
import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
from pyarrow import fs

from d2ls.errors import StorageError
from d2ls.scratch import atomic_write

S3_ATTEMPTS = 8
"""Attempts of a request while S3 answers 503 or not at all, with growing pauses; pyarrow's default of 3 is too low."""

PASSWORD = re.compile(r"(?<=://)([^/@:\s]*):(?!\d+(?:[/?\s]|$))\S*@")
"""User and password before the host of a URI, also a password with a slash; `host:9000/a@b` has none."""
SECRETS = {"client_secret", "sig"}
"""Parts of an Azure URI that are secret."""


def is_local(uri: str | os.PathLike[str]) -> bool:
    """Returns whether the location is on the local file system."""
    return urlsplit(os.fspath(uri)).scheme in ("", "file")


def local_path(uri: str | os.PathLike[str]) -> Path:
    """Returns the absolute path of a local location.

    Raises:
        StorageError: the location is in an object store.
    """
    text = os.fspath(uri)
    if not is_local(text):
        raise StorageError(f"{text} is not a local path")
    if text.startswith("file:"):
        text = urlsplit(text, allow_fragments=False).path
    return Path(text).expanduser().absolute()


def join(uri: str | os.PathLike[str], *parts: str) -> str:
    """Appends path parts to a location, keeping its scheme."""
    return posixpath.join(os.fspath(uri).rstrip("/") or "/", *parts)


def check_no_password(uri: str | os.PathLike[str]) -> None:
    """Refuses a location with a key or password in it: run folders, logs and MLflow keep locations as they are.

    Raises:
        StorageError: does not show the password.
    """
    text = os.fspath(uri)
    if is_local(text):
        return
    parts = urlsplit(text, allow_fragments=False)
    bucket = text.partition(":")[2].lstrip("/").partition("/")[0]
    named = ":" in bucket if parts.scheme == "s3" else PASSWORD.search(text)  # buckets have no colon
    if named or SECRETS & parse_qs(parts.query).keys():
        raise StorageError(
            f"{parts.scheme}://***: a location must not hold a password, which would be stored with the run. Name "
            "the bucket alone, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or what the store uses instead. "
            "An S3 server other than AWS is named in AWS_ENDPOINT_URL_S3"
        )


def resolve(uri: str | os.PathLike[str]) -> tuple[fs.FileSystem, str]:
    """Returns the pyarrow file system of a location and the path inside it.

    Raises:
        StorageError: unknown scheme, a password in the location, or a file system that cannot be set up.
    """
    text = os.fspath(uri)
    if is_local(text):
        return fs.LocalFileSystem(), str(local_path(text))
    check_no_password(text)
    parts = urlsplit(text, allow_fragments=False)
    try:
        if parts.scheme == "s3" and not parts.query:
            return _s3(_s3_endpoint()), parts.netloc + parts.path
        return fs.FileSystem.from_uri(text)
    except (pa.ArrowInvalid, OSError) as error:
        raise StorageError(f"{text}: cannot open this kind of storage: {error}") from error


def exists(uri: str | os.PathLike[str]) -> bool:
    """Returns whether a file or folder exists."""
    return info(uri).type != fs.FileType.NotFound


def check_free(uri: str | os.PathLike[str], way_out: str) -> None:
    """Refuses a location that the user named for a result if something exists there.

    Raises:
        StorageError: names the location and the way out.
    """
    if exists(uri):
        raise StorageError(f"{os.fspath(uri)}: exists already; {way_out}")


def info(uri: str | os.PathLike[str]) -> fs.FileInfo:
    """Returns pyarrow's FileInfo (type, size) of a location, even if nothing exists there."""
    system, path = resolve(uri)
    with _named(uri):
        return system.get_file_info(path)


def list_files(uri: str | os.PathLike[str], *, recursive: bool = False) -> list[fs.FileInfo]:
    """Lists the files and folders below a folder, sorted by path; returns an empty list if there is no such folder."""
    system, path = resolve(uri)
    selector = fs.FileSelector(path, allow_not_found=True, recursive=recursive)
    with _named(uri):
        return sorted(system.get_file_info(selector), key=lambda entry: entry.path)


def read_bytes(uri: str | os.PathLike[str]) -> bytes:
    """Reads a whole file.

    Raises:
        StorageError: missing or unreadable.
    """
    system, path = resolve(uri)
    with _named(uri), system.open_input_file(path) as stream:
        return bytes(stream.read())


def read_range(uri: str | os.PathLike[str], offset: int, length: int) -> bytes:
    """Reads a part of a file; shorter where the file ends before.

    Raises:
        StorageError: missing or unreadable.
    """
    system, path = resolve(uri)
    with _named(uri), system.open_input_file(path) as stream:
        return bytes(stream.read_at(length, offset))


def write_bytes(uri: str | os.PathLike[str], content: bytes, *, sync: bool = True) -> None:
    """Writes a whole file; readers see the old content or the new content, never a part.

    Args:
        uri: the file.
        content: its content.
        sync: wait until the content is on a local disk.

    Raises:
        StorageError: no space, no permission, no such bucket; nothing is left behind.
    """
    with _named(uri):
        if is_local(uri):
            with atomic_write(local_path(uri), sync=sync) as partial:
                partial.write_bytes(content)
            return
        system, path = resolve(uri)
        with system.open_output_stream(path) as stream:
            stream.write(content)


def upload(source: Path, uri: str | os.PathLike[str]) -> None:
    """Copies a local file to a location; readers see it whole or not at all."""
    with _named(uri):
        if is_local(uri):
            with atomic_write(local_path(uri), sync=False) as partial:
                shutil.copyfile(source, partial)
            return
        system, path = resolve(uri)
        fs.copy_files(
            str(source), path, source_filesystem=fs.LocalFileSystem(), destination_filesystem=system
        )


def download(uri: str | os.PathLike[str], target: Path) -> None:
    """Copies a file and its time to a local path in pieces, never whole in memory; the target's folder must exist.

    Raises:
        StorageError: missing, unreadable, or no space.
    """
    system, path = resolve(uri)
    with _named(uri), system.open_input_stream(path) as source, target.open("wb") as stream:
        shutil.copyfileobj(source, stream, 2**22)
    with _named(uri):
        time = system.get_file_info(path).mtime_ns
        os.utime(target, ns=(time, time))


def open_input(uri: str | os.PathLike[str], mode: str = "rb") -> io.BufferedReader:
    """Opens a file for reading anywhere in it; an object store is asked for the pieces that are read.

    Args:
        uri: the file.
        mode: `rb`; there for libraries that open files through a function.

    Raises:
        FileNotFoundError: missing.
        OSError: unreadable. Not a StorageError, because libraries try names that need not exist.
    """
    if mode not in ("r", "rb"):
        raise OSError(f"{os.fspath(uri)}: opened for reading only, not {mode!r}")
    system, path = resolve(uri)
    return io.BufferedReader(system.open_input_file(path), 2**20)


def fingerprint(uri: str | os.PathLike[str]) -> str:
    """Returns values that change with a file's content: size, time, and the store's tag if it has one.

    Raises:
        StorageError: there is no such file.
    """
    system, path = resolve(uri)
    with _named(uri):
        entry = system.get_file_info(path)
        if entry.type != fs.FileType.File:
            raise StorageError(f"{os.fspath(uri)}: no such file")
        tag = b""
        if not is_local(uri):
            with system.open_input_file(path) as stream:
                tag = (stream.metadata() or {}).get(b"ETag", b"")
    return f"{entry.size}-{entry.mtime_ns}" + (f"-{tag.decode().strip(chr(34))}" if tag else "")


def make_folder(uri: str | os.PathLike[str]) -> None:
    """Makes a folder and its parents; does nothing if it exists, or in an object store, which has no folders."""
    if is_local(uri):
        with _named(uri):
            local_path(uri).mkdir(parents=True, exist_ok=True)


def delete(uri: str | os.PathLike[str]) -> None:
    """Deletes a file or a whole folder; does nothing if there is neither."""
    system, path = resolve(uri)
    with _named(uri):
        kind = system.get_file_info(path).type
        if kind == fs.FileType.Directory:
            system.delete_dir(path)
        elif kind == fs.FileType.File:
            system.delete_file(path)


@contextlib.contextmanager
def _named(uri: str | os.PathLike[str]) -> Iterator[None]:
    """Turns operating-system and Arrow errors into StorageError with the location in front."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"{os.fspath(uri)}: {error}") from error


def _s3_endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


@lru_cache(maxsize=8)
def _s3(endpoint: str) -> fs.FileSystem:
    patience = fs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS)
    if not endpoint:
        return fs.S3FileSystem(retry_strategy=patience)
    parts = urlsplit(endpoint)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return fs.S3FileSystem(
        endpoint_override=parts.netloc, scheme=parts.scheme, region=region, retry_strategy=patience
    )

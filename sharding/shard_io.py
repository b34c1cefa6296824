"""Writing to the target: tars under temporary names that are renamed when whole, one writer at a time."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import filelock
from blake3 import blake3

from d2ls import storage
from d2ls.errors import ShardError, StorageError
from d2ls.scratch import atomic_write, remove_abandoned, scratch_folder
from d2ls.shards import CARD_FILE, INDEX_FILE, DatasetCard

COPY_BYTES = 2**20
LOCK_FILE = ".writing"

_log = logging.getLogger(__name__)


@contextmanager
def only_writer(uri: str) -> Iterator[None]:
    """Locks a local target, so that only one command of this machine writes to it; the lock ends with its process."""
    if not storage.is_local(uri):
        storage.write_bytes(storage.join(uri, LOCK_FILE), b"")  # only marks the folder as ours
        yield  # object stores have no locks, but every object there is whole and the card is written last
        return
    storage.make_folder(uri)
    lock = filelock.FileLock(storage.local_path(uri) / LOCK_FILE)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        _log.warning("%s: another command is writing shards there; waiting until it ends", uri)
        lock.acquire()
    except OSError as error:
        raise StorageError(f"{uri}: cannot be written: {error}. Name another folder in shards.uri") from error
    try:
        yield
    finally:
        lock.release()


def require_ours(uri: str, name: str, splits: Iterable[str]) -> None:
    """Refuses to replace files that this program did not make, or the shards of another data set.

    Args:
        uri: the target.
        name: name of the data set.
        splits: names of its splits.

    Raises:
        StorageError: names the file, or the other data set.
    """
    there, card = storage.join(uri, CARD_FILE), None
    if storage.exists(there):
        with suppress(ShardError):
            card = DatasetCard.from_json(storage.read_bytes(there).decode("utf-8", "replace"), where=there)
    if card is not None and card.name != name:
        raise StorageError(
            f"{uri}: holds the shards of {card.name!r}, not of {name!r}. Set shards.uri to another folder, or delete "
            "this one"
        )
    if card is not None or storage.exists(storage.join(uri, LOCK_FILE)):
        return
    folders = [(split, ".tar") for split in splits] + [("manifests", ".parquet"), ("preview", "")]
    names = [file for file in (CARD_FILE, INDEX_FILE) if storage.exists(storage.join(uri, file))]
    names += [
        f"{folder}/{entry.base_name}"
        for folder, ending in folders
        for entry in storage.list_files(storage.join(uri, folder))
        if entry.base_name.endswith(ending)
    ]
    if names:
        raise StorageError(
            f"{storage.join(uri, names[0])}: exists and was not made by this program, which would write or delete "
            "files of this name. Set shards.uri to another folder, or move the file"
        )


class HashingStream:
    """Counts and hashes the bytes that are written to a stream."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.digest = blake3()
        self.size = 0

    def write(self, content: bytes) -> int:
        """Appends bytes."""
        self.digest.update(content)
        self.size += len(content)
        return self._stream.write(content)


def tar_writer(stream: HashingStream) -> Any:
    """Returns WebDataset's own writer, set up so that the tar does not depend on time or user."""
    from webdataset.writer import TarWriter  # brings torch: not at import

    writer = TarWriter(stream, encoder=False, mtime=0, user="d2ls", group="d2ls", mode=0o644)
    writer.tarstream.copybufsize = writer.tarstream.fileobj.bufsize = (
        COPY_BYTES  # 10 kB steps cost as much as hashing
    )
    return writer


@contextmanager
def target_file(uri: str, path: str) -> Iterator[BinaryIO]:
    """Opens a temporary file that becomes `uri`/`path` if the block ends without an error, and is removed otherwise."""
    location = storage.join(uri, path)
    try:
        if storage.is_local(uri):
            target = storage.local_path(location)
            with atomic_write(target, scratch="shard") as partial, partial.open("wb") as stream:
                yield stream
            return
        with scratch_folder("shard") as folder:
            partial = folder / Path(path).name
            with partial.open("wb") as stream:
                yield stream
            storage.upload(partial, location)
    except OSError as error:
        raise StorageError(f"{location}: cannot be written: {error}") from error


def delete_leftovers(uri: str) -> None:
    """Deletes half-written files that killed commands left below a local target; files of running commands stay."""
    if storage.is_local(uri):
        folders = [entry.path for entry in storage.list_files(uri, recursive=True) if not entry.is_file]
        for folder in (str(storage.local_path(uri)), *folders):
            remove_abandoned(Path(folder))

"""Where shards are written: tars under temporary names that become whole or vanish, one writer at a time."""

import fcntl
import logging
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import psutil
from blake3 import blake3
from pyarrow import fs

from d2ls import storage
from d2ls.errors import StorageError

COPY_BYTES = 2**20
LEFTOVER_SECONDS = 86_400
LOCK_FILE = ".writing"

_log = logging.getLogger(__name__)


@contextmanager
def only_writer(uri: str) -> Iterator[None]:
    """Lets one command of this machine after the other write to a local target; a killed writer's hold ends with it."""
    if not storage.is_local(uri):
        yield  # object stores know no locks; every object there is whole, and the card comes last
        return
    storage.make_folder(uri)
    with (storage.local_path(uri) / LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.warning("%s: another command is writing shards there; waiting until it ends", uri)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class HashingStream:
    """Passes bytes on, counting and hashing them."""

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
    """WebDataset's own writer, set up so that nothing of time or user gets into the tar."""
    from webdataset.writer import TarWriter  # brings torch: not at import

    writer = TarWriter(stream, encoder=False, mtime=0, user="d2ls", group="d2ls", mode=0o644)
    writer.tarstream.copybufsize = writer.tarstream.fileobj.bufsize = (
        COPY_BYTES  # 10 kB steps cost as much as hashing
    )
    return writer


@contextmanager
def target_file(uri: str, path: str) -> Iterator[BinaryIO]:
    """Opens a temporary file that becomes `uri`/`path` when the block ends well, and vanishes when not."""
    location = storage.join(uri, path)
    local = storage.is_local(uri)
    folder = storage.local_path(location).parent if local else Path(tempfile.gettempdir())
    storage.make_folder(str(folder))
    handle, name = tempfile.mkstemp(
        dir=folder, prefix=f".{Path(path).name}.{socket.gethostname()}-{os.getpid()}.", suffix=".tmp"
    )
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        if local:
            partial.chmod(0o644)
            partial.replace(storage.local_path(location))
        else:
            storage.upload(partial, location)
    except OSError as error:
        raise StorageError(f"{location}: cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def sweep_leftovers(uri: str) -> None:
    """Deletes temporary files of killed runs from a local target; those of a run at work stay."""
    if storage.is_local(uri):
        for entry in storage.list_files(uri, recursive=True):
            if entry.type == fs.FileType.File and _is_leftover(Path(entry.path)):
                Path(entry.path).unlink(missing_ok=True)


def _is_leftover(path: Path) -> bool:
    """Says whether a file is a temporary one whose writer is gone: dead on this host, or silent for a day."""
    if not (path.name.startswith(".") and path.name.endswith(".tmp")):
        return False
    match = re.search(rf"\.{re.escape(socket.gethostname())}-(\d+)\.", path.name)
    if match:
        return not psutil.pid_exists(int(match[1]))
    return time.time() - path.stat().st_mtime > LEFTOVER_SECONDS

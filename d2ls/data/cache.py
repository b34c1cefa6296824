"""A bounded local cache of whole shards of an object store, shared by any number of processes on a machine."""

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from blake3 import blake3

from d2ls import storage
from d2ls.data.reader import LocalReader, RemoteReader, ShardReader
from d2ls.errors import ConfigError, ShardError, StorageError
from d2ls.shards import ShardFile, ShardSet

_CHUNK = 8 << 20
_SUFFIX, _PARTIAL = ".tar", ".partial"
_DIGEST = "[0-9a-f]" * 64
"""Pattern of the names of files of the cache, so that other files in its folder are left alone."""


@dataclass(frozen=True)
class CacheConfig:
    """Where shards of an object store are cached, and how many of them.

    Attributes:
        folder: local folder, created on first use; any number of processes may share it.
        max_bytes: largest total size of complete and arriving shards.
        local: whether to cache shards of a local path too (for a slow network disk).
    """

    folder: str = ""
    max_bytes: int = 50 * 10**9
    local: bool = False

    def path(self) -> Path:
        """Returns the folder; if unset, one of this user in the system's temporary folder."""
        if self.folder:
            return Path(self.folder)
        return Path(tempfile.gettempdir()) / f"d2ls-shards-{os.getuid()}"


@dataclass(frozen=True)
class SplitShards:
    """The shards of a split: all that a worker needs to find and check them.

    Attributes:
        uri: folder of the set.
        files: path of a shard below it -> its size and checksum.
    """

    uri: str
    files: Mapping[str, ShardFile]

    @classmethod
    def of(cls, shards: ShardSet, split: str) -> Self:
        """Returns the shards of a split."""
        return cls(shards.uri, {shard.path: shard for shard in shards.card.splits[split].shards})


def open_reader(shards: SplitShards, cache: CacheConfig | None) -> ShardReader:
    """Returns a reader for a local disk, or for an object store: through the cache if there is one, else by range."""
    local = storage.is_local(shards.uri)
    if cache is not None and (cache.local or not local):
        return CachedReader(shards, cache)
    return LocalReader(storage.local_path(shards.uri)) if local else RemoteReader(shards.uri)


class CachedReader:
    """Fetches whole shards into the cache on first use. Reads a shard by range while the cache has no room for it.

    Args:
        shards: the shards.
        config: folder and limit of the cache.

    Raises:
        ConfigError: one shard is larger than the limit.
    """

    whole_samples = False

    def __init__(self, shards: SplitShards, config: CacheConfig) -> None:
        largest = max(shards.files.values(), key=lambda shard: shard.bytes, default=None)
        if largest is not None and largest.bytes > config.max_bytes:
            raise ConfigError(
                f"the cache holds {config.max_bytes} bytes, but {largest.path} alone has {largest.bytes}: "
                "raise its limit, or make smaller shards"
            )
        self._shards, self._cache = shards, ShardCache(config.path(), config.max_bytes)
        self._cached = LocalReader(config.path())
        self._direct: ShardReader | None = None

    def read(self, shard: str, offset: int, length: int) -> bytes:
        """See `ShardReader.read`."""
        file = self._shards.files.get(shard)
        if file is None:
            raise ShardError(f"{self._shards.uri}: the card does not name shard {shard}")
        name = self._cache.name(file)
        if self._cache.touch(file):
            with contextlib.suppress(StorageError):
                return self._cached.read(name, offset, length)
        else:
            self._cached.forget_deleted()  # an open handle would keep the disk space of an evicted shard
        if self._cache.fetch(file, storage.join(self._shards.uri, shard)):
            with contextlib.suppress(StorageError):  # another process may have evicted it already
                return self._cached.read(name, offset, length)
        if self._direct is None:
            self._direct = open_reader(self._shards, None)
        return self._direct.read(shard, offset, length)


class ShardCache:
    """The folder of the cache: complete shards named by their checksum, and partial files of arriving shards.

    A process holds the folder's lock only to make room and to rename a complete shard, never during a download. Room
    is reserved before a download (the partial file has its full length from the start), so the limit always holds.
    The writer of a partial file holds a lock on it. A partial file without a lock was left by a killed process, and
    is removed.

    Args:
        folder: folder of the cache.
        max_bytes: its limit.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes

    @staticmethod
    def name(shard: ShardFile) -> str:
        """Returns the file name of a shard. It depends on the content, so the cache never serves a stale shard."""
        return shard.blake3 + _SUFFIX

    def touch(self, shard: ShardFile) -> bool:
        """Marks a shard as just used; returns whether it is in the cache.

        Raises:
            StorageError: the folder belongs to another user.
        """
        now = time.time_ns()  # finer than the kernel's own file times
        try:
            os.utime(self._folder / self.name(shard), ns=(now, now))
        except FileNotFoundError:
            return False
        except OSError as error:
            raise StorageError(f"cache {self._folder}: {error}") from error
        return True

    def fetch(self, shard: ShardFile, uri: str) -> bool:
        """Downloads a shard into the cache, or waits for the process that does; returns False if there is no room.

        Raises:
            ShardError: the downloaded shard differs from the card.
            StorageError: the shard or the folder cannot be read or written.
        """
        target = self._folder / self.name(shard)
        partial = target.with_suffix(_PARTIAL)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with _locked(partial.with_suffix(".lock")):
                if target.exists():
                    return True
                with self._room(partial, shard.bytes) as stream:
                    if stream is None:
                        return False
                    _download(uri, shard, stream)
                    with _locked(self._folder / ".lock"):  # an eviction sees one of its two names
                        partial.replace(target)
                    return self.touch(shard)
        except OSError as error:
            raise StorageError(f"cache {self._folder}: {error}") from error

    @contextlib.contextmanager
    def _room(self, partial: Path, size: int) -> Iterator[IO[bytes] | None]:
        with _locked(self._folder / ".lock"):
            fits = self._evict(size)
            stream = partial.open("w+b") if fits else None
            if stream is not None:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                stream.truncate(size)
        try:
            yield stream
        finally:
            if stream is not None:
                partial.unlink(missing_ok=True)  # renamed already if the shard arrived
                stream.close()

    def _evict(self, size: int) -> bool:
        """Removes the least recently used shards until `size` more bytes fit; returns whether they do."""
        for partial in self._folder.glob(_DIGEST + _PARTIAL):
            _remove_abandoned(partial)
        entries = [(path, path.stat()) for path in self._folder.glob(_DIGEST + _SUFFIX)]
        used = sum(stat.st_size for _, stat in entries)
        used += sum(path.stat().st_size for path in self._folder.glob(_DIGEST + _PARTIAL) if path.exists())
        for path, stat in sorted(entries, key=lambda entry: entry[1].st_mtime_ns):
            if used + size <= self._max_bytes:
                break
            path.unlink(missing_ok=True)
            used -= stat.st_size
        return used + size <= self._max_bytes


def _download(uri: str, shard: ShardFile, stream: IO[bytes]) -> None:
    digest, count = blake3(), 0
    system, path = storage.resolve(uri)
    try:
        source = system.open_input_stream(path)
    except OSError as error:
        raise StorageError(f"{uri}: {error}") from error
    with source:
        while chunk := _next_chunk(source, uri):
            digest.update(chunk)
            count += len(chunk)
            if count > shard.bytes:
                break
            stream.write(chunk)
    stream.flush()
    if count != shard.bytes or digest.hexdigest() != shard.blake3:
        raise ShardError(
            f"{uri}: {count} bytes with BLAKE3 {digest.hexdigest()[:16]}... arrived, the card says {shard.bytes} "
            f"bytes with {shard.blake3[:16]}...: it was changed or damaged; shard or upload the data set again"
        )
    os.fsync(stream.fileno())  # some disks report only now that they are full


def _next_chunk(source: IO[bytes], uri: str) -> bytes:
    try:
        return source.read(_CHUNK)
    except OSError as error:
        raise StorageError(f"{uri}: {error}") from error


def _remove_abandoned(partial: Path) -> None:
    with contextlib.suppress(FileNotFoundError, BlockingIOError), partial.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)

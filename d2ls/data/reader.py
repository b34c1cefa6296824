"""Bytes of samples: any range of any shard, from a local disk, an object store, or the cache before it."""

import os
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from d2ls import storage
from d2ls.errors import ShardError, StorageError
from d2ls.shards.index import IndexRow

_OPEN_FILES = 32  # files a process keeps open; more than the shards that the lanes of a rank are in at once


class ShardReader(Protocol):
    """Random access to the shards of a set."""

    whole_samples: bool
    """Whether a sample is better fetched in one piece than in parts."""

    def read(self, shard: str, offset: int, length: int) -> bytes:
        """Returns a range of a shard; shorter only where the shard ends before it.

        Raises:
            StorageError: missing or unreadable shard.
        """


class LocalReader:
    """Shards on a local disk, read by `pread`.

    Args:
        root: folder of the shard set.
    """

    whole_samples = False

    def __init__(self, root: Path) -> None:
        self._root = root
        self._handles: OrderedDict[str, int] = OrderedDict()
        weakref.finalize(self, _close_all, self._handles)

    def read(self, shard: str, offset: int, length: int) -> bytes:
        """See `ShardReader.read`."""
        try:
            return os.pread(self._handle(shard), length, offset)
        except OSError as error:
            raise StorageError(f"{self.path(shard)}: {error.strerror}") from error

    def path(self, shard: str) -> Path:
        """Returns where the shard lies."""
        return self._root / shard

    def forget(self, shard: str) -> None:
        """Closes a shard."""
        if shard in self._handles:
            os.close(self._handles.pop(shard))

    def _handle(self, shard: str) -> int:
        if shard in self._handles:
            self._handles.move_to_end(shard)
            return self._handles[shard]
        self._handles[shard] = handle = os.open(self.path(shard), os.O_RDONLY | os.O_CLOEXEC)
        if len(self._handles) > _OPEN_FILES:
            os.close(self._handles.popitem(last=False)[1])
        return handle


class RemoteReader:
    """Shards in an object store, read range by range through pyarrow.fs.

    Args:
        uri: folder of the shard set.
    """

    whole_samples = True

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._system, self._path = storage.resolve(uri)
        self._handles: OrderedDict[str, Any] = OrderedDict()

    def read(self, shard: str, offset: int, length: int) -> bytes:
        """See `ShardReader.read`."""
        try:
            return bytes(self._handle(shard).read_at(length, offset))
        except OSError as error:
            raise StorageError(f"{storage.join(self._uri, shard)}: {error}") from error

    def _handle(self, shard: str) -> Any:
        if shard in self._handles:
            self._handles.move_to_end(shard)
            return self._handles[shard]
        handle = self._system.open_input_file(f"{self._path.rstrip('/')}/{shard}")
        self._handles[shard] = handle
        if len(self._handles) > _OPEN_FILES:
            self._handles.popitem(last=False)[1].close()
        return handle


@dataclass
class Member:
    """One file of a sample inside its tar: bytes on demand.

    Attributes:
        files: where to read.
        record: the sample.
        name: `image`, `mask` or `meta`.
    """

    files: ShardReader
    record: IndexRow
    name: str
    _content: bytes | None = None

    @property
    def length(self) -> int:
        """Length in bytes, as the index says."""
        return int(getattr(self.record, f"{self.name}_length"))

    def part(self, offset: int, length: int) -> bytes:
        """Returns `length` bytes from `offset` on, reading no more than these where that is cheap.

        Raises:
            ShardError: the range lies outside the member, or the shard ends before it.
        """
        if offset < 0 or length < 0 or offset + length > self.length:
            raise ShardError(f"bytes {offset}..{offset + length} lie outside its {self.length}")
        if self._content is not None or self.files.whole_samples:
            return self.content()[offset : offset + length]
        return self._read(offset, length)

    def content(self) -> bytes:
        """Returns the whole member.

        Raises:
            ShardError: the shard ends before it.
        """
        if self._content is None:
            self._content = self._read(0, self.length)
        return self._content

    def _read(self, offset: int, length: int) -> bytes:
        start = getattr(self.record, f"{self.name}_offset") + offset
        found = self.files.read(self.record.shard, start, length)
        if len(found) != length:
            raise ShardError(f"the shard is truncated: {len(found)} of {length} bytes at byte {start}")
        return found


def open_sample(files: ShardReader, record: IndexRow, *names: str) -> tuple[Member, ...]:
    """Opens members of a sample; where requests are dear all of them come in one, as they lie side by side."""
    members = tuple(Member(files, record, name) for name in names)
    if files.whole_samples and len(members) > 1:
        starts = [getattr(record, f"{name}_offset") for name in names]
        first = min(starts)
        last = max(start + member.length for start, member in zip(starts, members, strict=True))
        span = files.read(record.shard, first, last - first)
        for start, member in zip(starts, members, strict=True):
            content = span[start - first : start - first + member.length]
            if len(content) != member.length:
                raise ShardError(f"the shard is truncated: it ends inside the {member.name}")
            member._content = content
    return members


def _close_all(handles: OrderedDict[str, int]) -> None:
    while handles:
        os.close(handles.popitem()[1])

"""Reads samples: bytes from a local disk or an object store, decoded window by window."""

import os
import weakref
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from d2ls import storage
from d2ls.errors import DataError, ShardError, StorageError
from d2ls.shards import IndexRow
from d2ls.shards.codecs import PixelFormat, decode_mask, read_image
from d2ls.window import Window

_OPEN_FILES = 32  # more than the shards that the lanes of a rank read from at once


class ShardReader(Protocol):
    """Random access to the shards of a set."""

    whole_samples: bool
    """Whether one request for a whole sample is cheaper than several for its parts."""

    def read(self, shard: str, offset: int, length: int) -> bytes:
        """Returns a range of a shard; shorter only if the shard ends first.

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

    def forget_deleted(self) -> None:
        """Closes shards whose files are no longer there."""
        for shard in [name for name, handle in self._handles.items() if not os.fstat(handle).st_nlink]:
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
    """One file of a sample inside its tar; bytes are read on demand.

    Attributes:
        reader: reads the shards.
        row: row of the sample.
        name: `image`, `mask` or `meta`.
    """

    reader: ShardReader
    row: IndexRow
    name: str
    _content: bytes | None = None

    @property
    def length(self) -> int:
        """Length in bytes, according to the index."""
        return int(getattr(self.row, f"{self.name}_length"))

    def read_range(self, offset: int, length: int) -> bytes:
        """Returns `length` bytes from `offset` on, without reading the whole member if that is cheaper.

        Raises:
            ShardError: the range lies outside the member, or the shard ends before it.
        """
        if offset < 0 or length < 0 or offset + length > self.length:
            raise ShardError(f"bytes {offset}..{offset + length} lie outside its {self.length}")
        if self._content is not None or self.reader.whole_samples:
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
        start = getattr(self.row, f"{self.name}_offset") + offset
        content = self.reader.read(self.row.shard, start, length)
        if len(content) != length:
            raise ShardError(f"the shard is truncated: {len(content)} of {length} bytes at byte {start}")
        return content


def open_sample(reader: ShardReader, row: IndexRow, *names: str) -> tuple[Member, ...]:
    """Opens members of a sample. If the reader prefers whole samples, one request reads all of them."""
    members = tuple(Member(reader, row, name) for name in names)
    if reader.whole_samples and len(members) > 1:
        starts = [getattr(row, f"{name}_offset") for name in names]
        first = min(starts)
        last = max(start + member.length for start, member in zip(starts, members, strict=True))
        span = reader.read(row.shard, first, last - first)
        for start, member in zip(starts, members, strict=True):
            content = span[start - first : start - first + member.length]
            if len(content) != member.length:
                raise ShardError(f"the shard is truncated: it ends inside the {member.name}")
            member._content = content
    return members


class SampleView(Protocol):
    """Image and labels of one size, decoded window by window."""

    height: int
    width: int

    def image(self, window: Window) -> npt.NDArray[Any]:
        """Returns the pixels of a window, h w C."""

    def mask(self, window: Window) -> npt.NDArray[np.uint8]:
        """Returns the labels of a window, h w."""


class ShardSample:
    """The view of one sample of the shards.

    Args:
        reader: reads the shards.
        row: row of the sample.
        pixel_format: what the sample must look like.
        verify: whether to compare the members with their checksums.

    Raises:
        DataError: the sample is damaged; every method may raise it. Names shard, key and cause.
    """

    def __init__(
        self, reader: ShardReader, row: IndexRow, pixel_format: PixelFormat, *, verify: bool
    ) -> None:
        self.height, self.width = row.height, row.width
        self._row, self._format = row, pixel_format
        self._mask: npt.NDArray[np.uint8] | None = None
        try:
            self._image_member, self._mask_member = open_sample(reader, row, "image", "mask")
            if verify:
                self._verify()
        except DataError as error:
            raise self._named(error) from error

    def image(self, window: Window) -> npt.NDArray[Any]:
        """Returns the pixels of a window, h w C."""
        expected = (self.height, self.width, self._format.channels, self._format.dtype)
        member = self._image_member
        try:
            return read_image(
                member.read_range, member.length, self._row.image_suffix, expected=expected, window=window
            )
        except DataError as error:
            raise self._named(error) from error

    def mask(self, window: Window) -> npt.NDArray[np.uint8]:
        """Returns the labels of a window, h w, ids 0..K-1 or 255."""
        if self._mask is None:
            try:
                mask = decode_mask(self._mask_member.content(), (self.height, self.width))
                self._format.check_mask(mask)
            except DataError as error:
                raise self._named(error) from error
            self._mask = mask
        return self._mask[window.slices]

    def _verify(self) -> None:
        for member in (self._image_member, self._mask_member):
            expected = getattr(self._row, f"{member.name}_crc32")
            actual = zlib.crc32(member.content())
            if actual != expected:
                raise ShardError(
                    f"the {member.name} has checksum {actual:08x}, the index says {expected:08x}"
                )

    def _named(self, error: DataError) -> DataError:
        return type(error)(
            f"{self._row.shard}, sample {self._row.key}: {error}. "
            "Shard the data set again, or let the loader skip it with `bad_samples: skip`"
        )


def _close_all(handles: OrderedDict[str, int]) -> None:
    while handles:
        os.close(handles.popitem()[1])

"""Reads windows of TIFF images as `sharding` writes them: only the blocks that a window touches are read and decoded.

Supported is classic little-endian TIFF (Adobe TIFF 6.0) with one image in tiles. Samples are interleaved: integers of
8 or 16 bits, or floats of 32 bits. Tiles are uncompressed or Zstandard. Integers may use the horizontal predictor.
`open_tiff` returns None for any other file.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from d2ls.errors import ShardError
from d2ls.window import Window

Read = Callable[[int, int], bytes]
"""`read(offset, length)` returns `length` bytes of a file from `offset` on."""

_ONE_THREAD = 2**15 - 1  # torch uses only the calling thread up to this many values: waking others costs more
_HEAD = 4096  # bytes read first; the directory lies there where the writer put it in front
_TYPES = {1: "B", 3: "H", 4: "I"}
_DEFAULTS = {258: (1,), 259: (1,), 277: (1,), 284: (1,), 317: (1,), 339: (1,)}
_NONE, _ZSTD = 1, 50000


@dataclass(frozen=True)
class Tiff:
    """Layout of a TIFF image.

    Attributes:
        height: H.
        width: W.
        channels: C.
        dtype: type of a pixel value.
        block: height and width of a tile; those at the lower and right edge are padded.
        offsets: first byte of each block, row by row.
        lengths: bytes of each block.
        compressed: whether blocks are compressed by Zstandard.
        predictor: whether blocks hold horizontal differences.
    """

    height: int
    width: int
    channels: int
    dtype: np.dtype[Any]
    block: tuple[int, int]
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    compressed: bool
    predictor: bool

    def read_window(self, read: Read, window: Window) -> npt.NDArray[Any]:
        """Reads a window of the image.

        Args:
            read: reads bytes of the file.
            window: a window inside the image.

        Returns:
            h w C, uint8, uint16 or float32.

        Raises:
            ShardError: a block is damaged.
        """
        top, left, height, width = window.row, window.column, window.height, window.width
        out = np.empty((height, width, self.channels), self.dtype)
        block_height, block_width = self.block
        across = -(-self.width // block_width)
        for row in range(top // block_height, -(-(top + height) // block_height)):
            y = row * block_height - top
            rows = (max(-y, 0), min(block_height, height - y))
            for column in range(left // block_width, -(-(left + width) // block_width)):
                x = column * block_width - left
                target = out[max(y, 0) : y + block_height, max(x, 0) : x + block_width]
                block = self._block_rows(read, row * across + column, rows)
                target[:] = block[:, max(-x, 0) :][:, : target.shape[1]]
        return out

    def _block_rows(self, read: Read, number: int, rows: tuple[int, int]) -> npt.NDArray[Any]:
        """Returns some rows of a block; reads only these if it is not compressed."""
        first, last = rows
        stride = self.block[1] * self.channels * self.dtype.itemsize
        if self.compressed:
            packed = read(self.offsets[number], self.lengths[number])
            data = _inflated(packed, self.block[0] * stride, number)[first * stride : last * stride]
        else:
            if self.lengths[number] < last * stride:
                raise ShardError(
                    f"TIFF block {number} holds {self.lengths[number]} bytes, not {last * stride}"
                )
            data = memoryview(read(self.offsets[number] + first * stride, (last - first) * stride))
        block = np.frombuffer(data, self.dtype).reshape(last - first, self.block[1], self.channels)
        return _running_sums(block) if self.predictor else block


def _running_sums(block: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Undoes the horizontal predictor: cumulative sums along rows per channel, modulo 2^bits; faster than NumPy."""
    import torch  # here, so that sharding needs torch only for Zstandard

    sums = np.array(block)
    signed = torch.from_numpy(sums.view(f"i{sums.itemsize}"))  # wraps around as unsigned numbers do
    at_once = len(signed) if torch.get_num_threads() == 1 else max(1, _ONE_THREAD // signed[0].numel())
    for top in range(0, len(signed), at_once):
        signed[top : top + at_once].cumsum_(1)
    return sums


def _inflated(packed: bytes, length: int, number: int) -> memoryview:
    try:
        data = memoryview(pa.decompress(packed, length, codec="zstd"))
    except OSError as error:
        raise ShardError(f"TIFF block {number} is damaged: {error}") from error
    if len(data) != length:
        raise ShardError(f"TIFF block {number} holds {len(data)} bytes, not {length}")
    return data


def open_tiff(read: Read, length: int) -> Tiff | None:
    """Reads the layout of a TIFF file; returns None if it is damaged or not supported."""
    head = read(0, min(_HEAD, length))
    if head[:4] != b"II*\0":
        return None

    def within(offset: int, count: int) -> bytes:
        if offset + count > length:
            raise IndexError(offset)
        return head[offset : offset + count] if offset + count <= len(head) else read(offset, count)

    try:
        tags = _directory(within)
        return None if tags is None else _layout(tags)
    except (struct.error, KeyError, IndexError, ZeroDivisionError):
        return None


def _directory(read: Read) -> dict[int, tuple[int, ...]] | None:
    (start,) = struct.unpack("<I", read(4, 4))
    (count,) = struct.unpack("<H", read(start, 2))
    entries = read(start + 2, count * 12 + 4)
    if struct.unpack("<I", entries[-4:]) != (0,):
        return None  # several images
    tags: dict[int, tuple[int, ...]] = dict(_DEFAULTS)
    for at in range(0, count * 12, 12):
        tag, kind, number = struct.unpack_from("<HHI", entries, at)
        if kind not in _TYPES:
            continue
        layout = f"<{number}{_TYPES[kind]}"
        size = struct.calcsize(layout)
        (offset,) = struct.unpack_from("<I", entries, at + 8)
        values = entries[at + 8 : at + 8 + size] if size <= 4 else read(offset, size)
        tags[tag] = struct.unpack(layout, values)
    return tags


def _layout(tags: dict[int, tuple[int, ...]]) -> Tiff | None:
    (width,), (height,), (channels,) = tags[256], tags[257], tags[277]
    bits, formats, (predictor,) = set(tags[258]), set(tags[339]), tags[317]
    integers = bits in ({8}, {16}) and formats == {1} and predictor in (1, 2)
    floats = bits == {32} and formats == {3} and predictor == 1
    chunky = tags[284] == (1,) or channels == 1
    if not (integers or floats) or not chunky or tags[259][0] not in (_NONE, _ZSTD):
        return None
    block, offsets, lengths = (tags[323][0], tags[322][0]), tags[324], tags[325]
    if len(offsets) != -(-height // block[0]) * -(-width // block[1]) or len(lengths) != len(offsets):
        return None
    return Tiff(
        height=height,
        width=width,
        channels=channels,
        dtype=np.dtype(f"<{'f' if floats else 'u'}{bits.pop() // 8}"),
        block=block,
        offsets=offsets,
        lengths=lengths,
        compressed=tags[259] == (_ZSTD,),
        predictor=predictor == 2,
    )

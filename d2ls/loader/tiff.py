"""Windows of TIFF images: only the tiles or strips that a window touches are read and inflated.

Read here: classic TIFF (Adobe TIFF 6.0), one image, chunky samples of 8 or 16 bits or 32-bit floats, in
tiles or strips, uncompressed, deflate or Zstandard, without predictor or (integers) with the horizontal one.
`open_tiff` returns None for anything else.
"""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from d2ls.errors import ShardError
from d2ls.loader.orders import Box

Read = Callable[[int, int], bytes]
Compression = Literal["none", "deflate", "zstd"]

_ONE_THREAD = 2**15 - 1  # values up to which torch stays in the calling thread: waking others costs more
_HEAD = 4096  # bytes read first; the directory lies there where the writer put it in front
_TYPES = {1: "B", 3: "H", 4: "I"}
_DEFAULTS = {258: (1,), 259: (1,), 277: (1,), 284: (1,), 317: (1,), 339: (1,)}
_COMPRESSIONS: dict[int, Compression] = {1: "none", 8: "deflate", 32946: "deflate", 50000: "zstd"}


@dataclass(frozen=True)
class Tiff:
    """Layout of a TIFF image.

    Attributes:
        height: H.
        width: W.
        channels: C.
        dtype: of a pixel as stored, with byte order.
        block: height and width of a tile (a strip is a tile as wide as the image).
        offsets: first byte of each block, row by row.
        lengths: bytes of each block.
        compression: of the blocks.
        predictor: whether blocks hold horizontal differences.
        strips: whether the last block ends with the image.
    """

    height: int
    width: int
    channels: int
    dtype: np.dtype[Any]
    block: tuple[int, int]
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    compression: Compression
    predictor: bool
    strips: bool

    def window(self, read: Read, box: Box) -> npt.NDArray[Any]:
        """Reads a window of the image.

        Args:
            read: gives `length` bytes of the file from `offset` on.
            box: the window; it lies inside the image.

        Returns:
            h w C, uint8, uint16 or float32 in native byte order.

        Raises:
            ShardError: a block is damaged.
        """
        top, left, height, width = box
        out = np.empty((height, width, self.channels), self.dtype.newbyteorder("="))
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
        """Reads some rows of a block: only these where it is not compressed."""
        first, last = rows
        stride = self.block[1] * self.channels * self.dtype.itemsize
        if self.compression == "none":
            if self.lengths[number] < last * stride:
                raise ShardError(
                    f"TIFF block {number} holds {self.lengths[number]} bytes, not {last * stride}"
                )
            data = memoryview(read(self.offsets[number] + first * stride, (last - first) * stride))
        else:
            packed = read(self.offsets[number], self.lengths[number])
            whole = _inflated(packed, self.compression, self._block_height(number) * stride, number)
            data = whole[first * stride : last * stride]
        block = np.frombuffer(data, self.dtype).reshape(last - first, self.block[1], self.channels)
        return _running_sums(block) if self.predictor else block

    def _block_height(self, number: int) -> int:
        """Rows of a block: the last strip of an image ends with it, tiles are filled up."""
        height, width = self.block
        if not self.strips:
            return height
        return min(height, self.height - number // -(-self.width // width) * height)


def _running_sums(block: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Sums rows up from the left, channel by channel, modulo the range of the dtype; quicker than NumPy."""
    sums = np.array(block, block.dtype.newbyteorder("="))
    signed = torch.from_numpy(sums.view(f"i{sums.itemsize}"))  # wraps around as unsigned numbers do
    at_once = len(signed) if torch.get_num_threads() == 1 else max(1, _ONE_THREAD // signed[0].numel())
    for top in range(0, len(signed), at_once):
        signed[top : top + at_once].cumsum_(1)
    return sums


def _inflated(packed: bytes, compression: Compression, length: int, number: int) -> memoryview:
    try:
        if compression == "deflate":
            data = memoryview(zlib.decompress(packed))
        else:
            data = memoryview(pa.decompress(packed, length, codec="zstd"))
    except (zlib.error, OSError) as error:
        raise ShardError(f"TIFF block {number} is damaged: {error}") from error
    if len(data) != length:
        raise ShardError(f"TIFF block {number} holds {len(data)} bytes, not {length}")
    return data


def open_tiff(read: Read, length: int) -> Tiff | None:
    """Reads the layout of a TIFF file; None where it is damaged or of a kind that is not read here."""
    head = read(0, min(_HEAD, length))
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(head[:4])
    if order is None:
        return None

    def within(offset: int, count: int) -> bytes:
        if offset + count > length:
            raise IndexError(offset)
        return head[offset : offset + count] if offset + count <= len(head) else read(offset, count)

    try:
        tags = _directory(within, order)
        return None if tags is None else _layout(tags, order)
    except (struct.error, KeyError, IndexError, ZeroDivisionError):
        return None


def _directory(read: Read, order: str) -> dict[int, tuple[int, ...]] | None:
    (start,) = struct.unpack(order + "I", read(4, 4))
    (count,) = struct.unpack(order + "H", read(start, 2))
    entries = read(start + 2, count * 12 + 4)
    if struct.unpack(order + "I", entries[-4:]) != (0,):
        return None  # several images
    tags: dict[int, tuple[int, ...]] = dict(_DEFAULTS)
    for at in range(0, count * 12, 12):
        tag, kind, number = struct.unpack_from(order + "HHI", entries, at)
        if kind not in _TYPES:
            continue
        layout = f"{order}{number}{_TYPES[kind]}"
        size = struct.calcsize(layout)
        (offset,) = struct.unpack_from(order + "I", entries, at + 8)
        values = entries[at + 8 : at + 8 + size] if size <= 4 else read(offset, size)
        tags[tag] = struct.unpack(layout, values)
    return tags


def _layout(tags: dict[int, tuple[int, ...]], order: str) -> Tiff | None:
    (width,), (height,), (channels,) = tags[256], tags[257], tags[277]
    bits, formats = set(tags[258]), set(tags[339])
    whole = bits in ({8}, {16}) and formats == {1} and tags[317][0] in (1, 2)
    floats = bits == {32} and formats == {3} and tags[317][0] == 1
    chunky = tags[284] == (1,) or channels == 1
    if not (whole or floats) or not chunky or tags[259][0] not in _COMPRESSIONS:
        return None
    if tags.get(262) == (6,) or tags.get(266, (1,)) != (1,):
        return None  # YCbCr, or bits from the low end
    tiled = 322 in tags
    block = (tags[323][0], tags[322][0]) if tiled else (min(tags.get(278, (height,))[0], height), width)
    offsets, lengths = (tags[324], tags[325]) if tiled else (tags[273], tags[279])
    if len(offsets) != -(-height // block[0]) * -(-width // block[1]) or len(lengths) != len(offsets):
        return None
    return Tiff(
        height=height,
        width=width,
        channels=channels,
        dtype=np.dtype(f"{order}{'f' if floats else 'u'}{bits.pop() // 8}"),
        block=block,
        offsets=offsets,
        lengths=lengths,
        compression=_COMPRESSIONS[tags[259][0]],
        predictor=tags[317] == (2,),
        strips=not tiled,
    )

"""Windows of TIFF images: only the tiles or strips that a window touches are read and inflated.

Read here: classic TIFF (Adobe TIFF 6.0), one image, chunky samples of 8 or 16 bits, in tiles or strips, uncompressed
or deflate, without predictor or with the horizontal one. `open_tiff` says None for anything else.
"""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from d2ls.errors import ShardError
from d2ls.loader.orders import Box

Read = Callable[[int, int], bytes]

_HEAD = 4096  # bytes read first; the directory lies there where the writer put it in front
_TYPES = {1: "B", 3: "H", 4: "I"}
_DEFAULTS = {258: (1,), 259: (1,), 277: (1,), 284: (1,), 317: (1,), 339: (1,)}
_NONE, _DEFLATE = (1,), ((8,), (32946,))


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
        deflate: whether blocks are compressed.
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
    deflate: bool
    predictor: bool
    strips: bool

    def window(self, read: Read, box: Box) -> npt.NDArray[Any]:
        """Reads a window of the image.

        Args:
            read: gives `length` bytes of the file from `offset` on.
            box: the window; it lies inside the image.

        Returns:
            h w C, uint8 or uint16 in native byte order.

        Raises:
            ShardError: a block is damaged.
        """
        top, left, height, width = box
        out = np.empty((height, width, self.channels), self.dtype.newbyteorder("="))
        block_height, block_width = self.block
        across = -(-self.width // block_width)
        for row in range(top // block_height, -(-(top + height) // block_height)):
            for column in range(left // block_width, -(-(left + width) // block_width)):
                block = self._block(read, row * across + column, row)
                y, x = row * block_height - top, column * block_width - left
                target = out[max(y, 0) : y + block_height, max(x, 0) : x + block_width]
                source = block[max(-y, 0) :, max(-x, 0) :]
                target[:] = source[: target.shape[0], : target.shape[1]]
        return out

    def _block(self, read: Read, number: int, row: int) -> npt.NDArray[Any]:
        data = read(self.offsets[number], self.lengths[number])
        if self.deflate:
            try:
                data = zlib.decompress(data)
            except zlib.error as error:
                raise ShardError(f"TIFF block {number} is damaged: {error}") from error
        height, width = self.block
        if self.strips:
            height = min(height, self.height - row * height)
        shape = (height, width, self.channels)
        if len(data) != int(np.prod(shape)) * self.dtype.itemsize:
            raise ShardError(f"TIFF block {number} holds {len(data)} bytes, not those of {shape}")
        block = np.frombuffer(data, self.dtype).reshape(shape)
        if not self.predictor:
            return block
        summed: npt.NDArray[Any] = np.cumsum(block, axis=1, dtype=self.dtype.newbyteorder("="))
        return summed


def open_tiff(read: Read, length: int) -> Tiff | None:
    """Reads the layout of a TIFF file; None where it is of a kind that is not read here.

    Raises:
        ShardError: the directory lies outside the file.
    """
    head = read(0, min(_HEAD, length))
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(head[:4])
    if order is None:
        return None
    try:
        tags = _directory(lambda o, n: head[o : o + n] if o + n <= len(head) else read(o, n), order)
        return None if tags is None else _layout(tags, order)
    except (struct.error, KeyError, IndexError):
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
    simple = len(bits) == 1 and bits <= {8, 16} and formats == {1} and tags[317][0] in (1, 2)
    chunky = tags[284] == (1,) or channels == 1
    if not simple or not chunky or tags[259] not in (_NONE, *_DEFLATE):
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
        dtype=np.dtype(f"{order}u{bits.pop() // 8}"),
        block=block,
        offsets=offsets,
        lengths=lengths,
        deflate=tags[259] in _DEFLATE,
        predictor=tags[317] == (2,),
        strips=not tiled,
    )

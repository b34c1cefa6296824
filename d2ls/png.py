"""PNG by rows: label images are written here, and nothing below the last row that a window needs is inflated.

PNG (W3C, second edition) holds one deflate stream of filtered rows, so a window costs all rows above it, but none
below. Rows with the filters None and Sub stand alone and are summed up here, for the window only; the others refer to
their upper neighbour and go through OpenCV, as a shorter PNG that is made of the same inflated rows.

ISA-L inflates labels twice as fast as zlib. It does not deflate here: its output may depend on the processor.
"""

import struct
import zlib
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from d2ls.errors import ShardError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # grey, colour, grey with alpha, colour with alpha
_NONE, _SUB = 0, 1


class Png(NamedTuple):
    """A PNG file that can be read row by row: 8 bits, neither palette nor interlace.

    Attributes:
        height: H.
        width: W.
        channels: C.
        header: the IHDR chunk's content.
        packed: the deflate stream.
    """

    height: int
    width: int
    channels: int
    header: bytes
    packed: bytes

    def inflate(self, rows: int) -> npt.NDArray[np.uint8]:
        """Inflates the first rows: rows x (1 + W C), uint8, the filter in front of each row.

        Raises:
            ShardError: the stream is damaged or ends early.
        """
        length = rows * (1 + self.width * self.channels)
        try:
            if rows == self.height:
                data = isal_zlib.decompress(self.packed, bufsize=length)
            else:
                data = isal_zlib.decompressobj().decompress(self.packed, length)
        except isal_zlib.error as error:  # type: ignore[misc]  # its stub makes the class an instance
            raise ShardError(f"cannot be decoded: {error}") from error
        if len(data) != length:
            raise ShardError(f"cannot be decoded: it holds {len(data)} bytes of pixels, not {length}")
        return np.frombuffer(data, np.uint8).reshape(rows, -1)


def open_png(content: bytes) -> Png | None:
    """Reads the chunks of a PNG file; None where it is damaged or of a kind that is not read here."""
    if content[:8] != _SIGNATURE or content[12:16] != b"IHDR":
        return None
    header, at, packed = content[16:29], 8, []
    try:
        width, height, depth, color, _, _, interlace = struct.unpack(">IIBBBBB", header)
        while at < len(content):
            length, kind = struct.unpack_from(">I4s", content, at)
            if kind == b"IDAT":
                packed.append(content[at + 8 : at + 8 + length])
            at += 12 + length
    except struct.error:
        return None
    if depth != 8 or interlace or color not in _CHANNELS or at != len(content):
        return None
    return Png(height, width, _CHANNELS[color], header, b"".join(packed))


def alone(data: npt.NDArray[np.uint8]) -> bool:
    """Says whether no inflated row refers to its upper neighbour."""
    return bool(data[:, 0].max(initial=0) <= _SUB)


def unfiltered(png: Png, data: npt.NDArray[np.uint8], top: int) -> npt.NDArray[np.uint8] | None:
    """Undoes the filters of the inflated rows from `top` on: h W C; None where rows refer to other rows."""
    if not alone(data[top:]):
        return None
    filters = data[top:, 0]
    pixels = data[top:, 1:].reshape(-1, png.width, png.channels)
    if not filters.any():
        return pixels
    summed: npt.NDArray[Any] = np.cumsum(pixels, axis=1, dtype=np.uint8)
    if not filters.all():
        summed[filters == _NONE] = pixels[filters == _NONE]
    return summed


def shortened(png: Png, data: npt.NDArray[np.uint8]) -> bytes:
    """Makes a PNG file of the inflated rows, not compressed: for a decoder that always reads whole files."""
    return _file(png.header[:4] + struct.pack(">I", len(data)) + png.header[8:], zlib.compress(data.data, 0))


def grey_png(values: npt.NDArray[np.uint8]) -> bytes:
    """Encodes H W values, made for labels: rows without a filter, run lengths in place of a search for repetitions.

    The bytes depend on zlib alone, not on the processor.
    """
    assert values.dtype == np.uint8
    height, width = values.shape
    rows = np.zeros((height, 1 + width), np.uint8)
    rows[:, 1:] = values
    deflate = zlib.compressobj(1, strategy=zlib.Z_RLE)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return _file(header, deflate.compress(rows.data) + deflate.flush())


def _file(header: bytes, packed: bytes) -> bytes:
    parts = [_SIGNATURE]
    for kind, content in ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b"")):
        checksum = zlib.crc32(content, zlib.crc32(kind))
        parts += [struct.pack(">I", len(content)), kind, content, struct.pack(">I", checksum)]
    return b"".join(parts)

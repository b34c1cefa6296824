"""Grey PNG (W3C, second edition) for labels: rows without filters, packed by zlib, inflated by ISA-L.

ISA-L inflates labels twice as fast as zlib. It does not deflate here: its output may depend on the processor.
"""

import struct
import zlib

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from d2ls.errors import ShardError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = ">IIBBBBB"  # width, height, bits, colour type, compression, filters, interlace
_GREY = (8, 0, 0, 0, 0)


def read_grey_png(content: bytes, size: tuple[int, int]) -> npt.NDArray[np.uint8] | None:
    """Reads a grey PNG of 8 bits and a known size (H, W) whose rows have no filter; None for any other file.

    Raises:
        ShardError: it is such a file, but its stream is damaged or ends early.
    """
    if content[:8] != _SIGNATURE or content[12:16] != b"IHDR":
        return None
    at, packed = 8, []
    try:
        width, height, *kind = struct.unpack(_HEADER, content[16:29])
        while at < len(content):
            length, chunk = struct.unpack_from(">I4s", content, at)
            if chunk == b"IDAT":
                packed.append(content[at + 8 : at + 8 + length])
            at += 12 + length
    except struct.error:
        return None
    if tuple(kind) != _GREY or (height, width) != size or at != len(content):
        return None
    length = height * (1 + width)
    try:
        data = isal_zlib.decompress(b"".join(packed), bufsize=length)
    except isal_zlib.error as error:  # type: ignore[misc]  # its stub makes the class an instance
        raise ShardError(f"the mask cannot be decoded: {error}") from error
    if len(data) != length:
        raise ShardError(f"the mask cannot be decoded: it holds {len(data)} bytes of pixels, not {length}")
    rows = np.frombuffer(data, np.uint8).reshape(height, 1 + width)
    return None if rows[:, 0].any() else rows[:, 1:]


def grey_png(values: npt.NDArray[np.uint8]) -> bytes:
    """Encodes H W values, made for labels: rows without a filter, run lengths in place of a search for repetitions.

    The bytes depend on zlib alone, not on the processor.
    """
    assert values.dtype == np.uint8
    height, width = values.shape
    rows = np.zeros((height, 1 + width), np.uint8)
    rows[:, 1:] = values
    deflate = zlib.compressobj(1, strategy=zlib.Z_RLE)
    parts = [_SIGNATURE]
    for kind, content in (
        (b"IHDR", struct.pack(_HEADER, width, height, *_GREY)),
        (b"IDAT", deflate.compress(rows.data) + deflate.flush()),
        (b"IEND", b""),
    ):
        checksum = zlib.crc32(content, zlib.crc32(kind))
        parts += [struct.pack(">I", len(content)), kind, content, struct.pack(">I", checksum)]
    return b"".join(parts)

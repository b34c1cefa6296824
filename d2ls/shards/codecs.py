"""Image and label members of a shard, from bytes to pixels: the decoder of writer, loader, previews and `--verify`."""

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from d2ls.errors import ShardError
from d2ls.shards.png import read_grey_png
from d2ls.shards.tiff import Box, Read, open_tiff

Expected = tuple[int, int, int, str]
"""Height, width, channels and dtype that card and index tell of an image."""

_TO_RGB = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}


def read_image(
    read: Read, length: int, suffix: str, *, expected: Expected | None = None, box: Box | None = None
) -> npt.NDArray[Any]:
    """Decodes an image or a window of it: of a TIFF only the blocks that the window touches, else the whole.

    Args:
        read: gives bytes of the encoded image.
        length: of the encoded image, in bytes.
        suffix: `tif`, `png`, `webp` or `jpg`.
        expected: what it must be.
        box: window inside the image; None takes it whole.

    Returns:
        h w C, uint8, uint16 or float32; red, green, blue where there are three or four channels.

    Raises:
        ShardError: it cannot be decoded, or is not what is expected.
    """
    if suffix == "tif":
        layout = open_tiff(read, length)
        if layout is None:
            raise ShardError("the image cannot be decoded: damaged, or not a tif as pipeline.shard writes it")
        _check((layout.height, layout.width, layout.channels, layout.dtype.name), expected)
        return layout.window(read, box or (0, 0, layout.height, layout.width))
    image = _decode(read(0, length), "image")
    image = image[:, :, None] if image.ndim == 2 else image
    _check((*image.shape, image.dtype.name), expected)
    if box is not None:
        image = image[box[0] : box[0] + box[2], box[1] : box[1] + box[3]]
    return cv2.cvtColor(image, _TO_RGB[image.shape[2]]) if image.shape[2] in _TO_RGB else image


def decode_image(
    content: bytes, suffix: str, *, expected: Expected | None = None, box: Box | None = None
) -> npt.NDArray[Any]:
    """Decodes an image in memory; see `read_image`."""
    return read_image(
        lambda offset, length: content[offset : offset + length],
        len(content),
        suffix,
        expected=expected,
        box=box,
    )


def decode_mask(content: bytes, size: tuple[int, int] | None = None) -> npt.NDArray[np.uint8]:
    """Decodes a label image: H W, uint8. Quicker where the size (H, W) is known and it is as `grey_png` writes it.

    Raises:
        ShardError: it cannot be decoded, has more than 8 bits or one channel, or another size.
    """
    plain = read_grey_png(content, size) if size else None
    if plain is not None:
        return plain
    mask = _decode(content, "mask")
    if mask.ndim != 2 or mask.dtype != np.uint8 or (size and mask.shape != size):
        raise ShardError(f"the mask is {mask.shape} {mask.dtype.name}, the index says {size or 'H W'} uint8")
    return mask


def _check(found: tuple[Any, ...], expected: Expected | None) -> None:
    if expected is not None and found != expected:
        raise ShardError(f"the image is {found}, card and index say {expected}")


def _decode(content: bytes, name: str) -> npt.NDArray[Any]:
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ShardError(f"the {name} cannot be decoded: {error}") from error
    if pixels is None:
        raise ShardError(f"the {name} cannot be decoded: damaged, or not an image")
    return np.asarray(pixels)

"""Rasters as pieces from the top down, so that none is ever held in memory whole."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio.features

from d2ls.errors import StorageError
from d2ls.labels import IGNORE

Rows = Iterator[tuple[int, npt.NDArray[np.uint8]]]
"""Pieces of a raster from the top down: first row, and pixels h W or planes h W."""

STRIP_PIXELS = 2**24
"""Pixels of a strip for outlining polygons; each takes about 16 bytes."""


def realigned(rows: Rows, height: int) -> Rows:
    """Regroups pieces of any height into pieces that begin at multiples of `height`."""
    held: list[npt.NDArray[np.uint8]] = []
    start = count = 0
    for _, block in rows:
        while block.shape[-2]:
            part, block = np.split(block, [height - count], axis=-2)
            held.append(part)
            count += part.shape[-2]
            if count == height:
                yield start, np.concatenate(held, axis=-2)
                start, count, held = start + height, 0, []
    if held:
        yield start, np.concatenate(held, axis=-2)


def resampled(rows: Rows, source: tuple[int, int], target: tuple[int, int]) -> Rows:
    """Resamples rows to another grid over the same ground, by nearest neighbour.

    Args:
        rows: of the source grid.
        source: its rows and columns.
        target: rows and columns of the result.
    """
    if source == target:
        yield from rows
        return
    down, across = (_nearest(target[axis], source[axis]) for axis in (0, 1))
    for top, block in rows:
        first, last = np.searchsorted(down, [top, top + block.shape[-2]])
        if last > first:
            yield int(first), block[..., down[first:last] - top, :][..., across]


def _nearest(length: int, there: int) -> npt.NDArray[np.intp]:
    """Returns, for each of `length` pixels along an axis, the nearest of `there` pixels over the same ground."""
    return np.minimum((np.arange(length) + 0.5) * there / length, there - 1).astype(np.intp)


def strips(
    labels: Rows, steps: Rows, width: int
) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]:
    """Pairs rows of labels with rows of confidence, in strips of `STRIP_PIXELS`."""
    height = max(1, STRIP_PIXELS // width)
    pairs = zip(realigned(labels, height), realigned(steps, height), strict=True)
    yield from ((first.reshape(-1, width), second.reshape(-1, width)) for (_, first), (_, second) in pairs)


def whole(raster: npt.NDArray[np.uint8], height: int = 512) -> Rows:
    """Yields an array (H W) in pieces."""
    for top in range(0, len(raster), height):
        yield top, np.asarray(raster[top : top + height])


@contextlib.contextmanager
def sieved(
    rows: Rows, size: tuple[int, int], min_pixels: int, workspace: Path
) -> Iterator[npt.NDArray[np.uint8]]:
    """Yields a label map in which small regions have taken the class of their largest neighbour.

    `rasterio.features.sieve` needs arrays; they are memory-mapped files. GDAL does not change a region whose neighbours
    are all too small. In a noisy map that is nearly every region, so the size is doubled step by step.

    Args:
        rows: the label map.
        size: its rows and columns.
        min_pixels: regions with fewer pixels are removed, except those that only border on pixels without data.
        workspace: folder for the files, which are deleted afterwards.

    Raises:
        StorageError: the files cannot be written.
    """
    min_pixels = min(min_pixels, size[0] * size[1] - 1)  # with more, GDAL refuses
    files = [workspace / f".{name}.{os.getpid()}.tmp" for name in ("before", "after", "mask")]
    try:
        before, after, mask = (_file_array(file, size) for file in files)
        for top, block in rows:
            before[top : top + block.shape[0]] = block
            mask[top : top + block.shape[0]] = block != IGNORE
        sizes = [2**power for power in range(1, min_pixels.bit_length()) if 2**power < min_pixels]
        for size_now in (*sizes, min_pixels) if min_pixels else ():
            rasterio.features.sieve(before, size_now, out=after, mask=mask)
            before, after = after, before
        yield before
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def _file_array(file: Path, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Returns an array in a file. Its place is reserved first: on a full disk, writing to it would kill the process."""
    try:
        with file.open("wb") as stream:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(stream.fileno(), 0, size[0] * size[1])
            else:  # macOS cannot reserve it
                stream.truncate(size[0] * size[1])
        return np.memmap(file, np.uint8, "r+", shape=size)
    except OSError as error:
        raise StorageError(f"{file}: cannot be written: {error}") from error

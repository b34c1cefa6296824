"""What a finished shard says of itself: the part file beside the tar, its pixel sums and its digests."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from blake3 import blake3

from d2ls import storage
from d2ls.shards import ShardFile
from sharding.plan import ShardTask
from sharding.raster import Pixels
from sharding.raster.base import Mask
from sharding.scaling import Scale


@dataclass
class PixelSums:
    """Sums over the unpadded pixels with data of each channel; integers, so the order of adding does not matter.

    Attributes:
        count: pixels.
        total: sum of the values; of float images, of steps of 1/65535 of the scale.
        squares: sum of their squares.
        beyond: pixels of float images outside of the scale.
        highest: highest value of an integer image.
    """

    count: list[int] = field(default_factory=list)
    total: list[int] = field(default_factory=list)
    squares: list[int] = field(default_factory=list)
    beyond: list[int] = field(default_factory=list)
    highest: list[int] = field(default_factory=list)

    def add(self, image: Pixels, valid: Mask | None, scale: Scale | None = None) -> None:
        """Adds the pixels of an image (H W C) that hold data (H W; None: all); `scale` is that of a float image."""
        bands = image.shape[2]
        self.count = self.count or [0] * bands
        self.beyond = self.beyond or [0] * bands
        self.highest = self.highest or [0] * bands
        self.total = self.total or [0] * bands
        self.squares = self.squares or [0] * bands
        for band in range(bands):
            counts = histogram(image, band, valid) if scale is None else self._steps(image, band, scale[band])
            self.count[band] += int(counts.sum())
            values = np.arange(len(counts), dtype=np.uint64)
            self.total[band] += int((counts * values).sum())
            self.squares[band] += int((counts * values * values).sum())
            self.highest[band] = max(self.highest[band], int(np.flatnonzero(counts)[-1:].sum()))

    def _steps(self, image: Pixels, band: int, scale: tuple[float, float]) -> npt.NDArray[np.uint64]:
        """Counts pixels of a band by steps of the scale; what lies outside counts at its ends, NaN does not count."""
        values, (low, high) = image[..., band], scale
        self.beyond[band] += int(((values < low) | (values > high)).sum())
        steps = np.nan_to_num((values.clip(low, high).astype(np.float64) - low) * (65535 / (high - low)))
        return histogram(np.rint(steps).astype(np.uint16), 0, np.isfinite(values))


@dataclass(frozen=True)
class ShardManifest:
    """What a finished shard holds; its presence says that the shard is finished.

    Attributes:
        fingerprint: of the task.
        shard: the tar.
        rows: index rows (columns of `INDEX_SCHEMA`) with a `digest` more.
        sums: of the pixels, empty where not wanted.
        strays: raw code in words to number of pixels.
    """

    fingerprint: str
    shard: ShardFile
    rows: list[dict[str, Any]]
    sums: PixelSums
    strays: dict[str, int]

    def to_json(self) -> str:
        """Returns the part as JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ShardManifest":
        """Inverse of `to_json`; raises ValueError, KeyError or TypeError for another text."""
        values = json.loads(text)
        values["shard"] = ShardFile(**values["shard"])
        values["sums"] = PixelSums(**values["sums"])
        return cls(**values)


def finished_manifest(task: ShardTask, uri: str) -> ShardManifest | None:
    """Returns the part of a shard that an earlier run finished, if it is the same task and the tar is there."""
    location = storage.join(uri, task.manifest)
    if not storage.exists(location):
        return None
    try:
        part = ShardManifest.from_json(storage.read_bytes(location).decode())
    except (ValueError, KeyError, TypeError):
        return None
    size = storage.info(storage.join(uri, task.path)).size
    return part if part.fingerprint == task.fingerprint and size == part.shard.bytes else None


def histogram(values: npt.NDArray[Any], band: int = 0, valid: Mask | None = None) -> npt.NDArray[np.uint64]:
    """Counts of each value of unsigned integers, H W or one band of H W C: 256 for uint8, 65536 for uint16.

    Args:
        values: uint8 or uint16.
        band: which.
        valid: pixels to count (H W); None: all.
    """
    size = 256 if values.dtype == np.uint8 else 65536
    bands = values.shape[2] if values.ndim == 3 else 1
    if values.shape[0] * values.shape[1] < 2**24 and bands <= 4:  # float32 counts are exact up to here
        mask = None if valid is None else valid.view(np.uint8)
        counts = cv2.calcHist([np.ascontiguousarray(values)], [band], mask, [size], [0, size])
        return np.asarray(counts.reshape(-1), np.uint64)
    flat = values.reshape(-1, bands)[:, band]
    if valid is not None:
        flat = flat[valid.reshape(-1)]
    return np.bincount(flat, minlength=size).astype(np.uint64)


def sample_digest(image: npt.NDArray[Any], ids: npt.NDArray[np.uint8]) -> str:
    """BLAKE3 (hex) over the decoded pixels of a sample and its class ids."""
    digest = blake3(f"{image.shape} {image.dtype} {ids.shape}\n".encode())
    little = image.astype(image.dtype.newbyteorder("<"), copy=False)
    digest.update(np.ascontiguousarray(little).view(np.uint8).data)
    digest.update(np.ascontiguousarray(ids).data)
    return digest.hexdigest()

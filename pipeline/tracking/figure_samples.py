"""The few samples of the val split that the figures of a run show in every epoch."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from d2ls import storage
from d2ls.data.decode import PixelFormat
from d2ls.data.reader import LocalReader, RemoteReader, ShardReader
from d2ls.data.samples import ShardSample
from d2ls.shards import ShardSet


@dataclass(frozen=True)
class Shown:
    """One sample: key, image (H W bands, raw) and labels (H W, uint8)."""

    key: str
    image: npt.NDArray[Any]
    labels: npt.NDArray[np.uint8]


def choose(class_pixels: npt.NDArray[np.int64], count: int) -> list[int]:
    """Picks rows that together show all classes as evenly as possible; the same rows for the same counts.

    Args:
        class_pixels: N K pixel counts.
        count: number of rows; all rows where there are fewer.
    """
    shares = class_pixels / np.maximum(class_pixels.sum(axis=1, keepdims=True), 1)
    seen = np.zeros(class_pixels.shape[1])
    chosen: list[int] = []
    for _ in range(min(count, len(shares))):
        gain = np.sqrt(seen + shares).sum(axis=1) - np.sqrt(seen).sum()
        gain[chosen] = -np.inf
        chosen.append(int(gain.argmax()))
        seen += shares[chosen[-1]]
    return chosen


def load(shards: ShardSet, split: str, count: int, side: int) -> list[Shown]:
    """Reads the chosen samples, their central windows of at most `side` pixels.

    Raises:
        DataError: the split is missing, or a sample is damaged.
    """
    records = shards.split_index(split)
    layout = PixelFormat.of(shards.card)
    local = storage.is_local(shards.uri)
    files: ShardReader = LocalReader(storage.local_path(shards.uri)) if local else RemoteReader(shards.uri)
    shown = []
    for row in choose(records.pixels_by_class(), count):
        record = records[row]
        height, width = min(side, record.height), min(side, record.width)
        box = ((record.height - height) // 2, (record.width - width) // 2, height, width)
        sample = ShardSample(files, record, layout, verify=False)
        shown.append(Shown(record.key, sample.image(box), sample.mask(box)))
    return shown

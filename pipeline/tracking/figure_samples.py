"""Samples of the val split that the figures of a run show in every epoch."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from d2ls.data.cache import SplitShards, open_reader
from d2ls.data.reader import ShardSample
from d2ls.shards import ShardSet
from d2ls.shards.codecs import PixelFormat
from d2ls.window import Window


@dataclass(frozen=True)
class Shown:
    """One sample: key, image (H W bands, raw) and labels (H W, uint8)."""

    key: str
    image: npt.NDArray[Any]
    labels: npt.NDArray[np.uint8]


def choose(class_pixels: npt.NDArray[np.int64], count: int) -> list[int]:
    """Picks rows that together show all classes as evenly as possible. The choice depends only on the counts.

    Args:
        class_pixels: N K pixel counts.
        count: number of rows; all rows if there are fewer.
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
    """Reads the central windows, of at most `side` pixels, of the chosen samples.

    Raises:
        DataError: the split is missing, or a sample is damaged.
    """
    index = shards.split_index(split)
    pixel_format = PixelFormat.of(shards.card)
    reader = open_reader(SplitShards.of(shards, split), cache=None)
    shown = []
    for number in choose(index.pixels_by_class(), count):
        row = index[number]
        height, width = min(side, row.height), min(side, row.width)
        window = Window((row.height - height) // 2, (row.width - width) // 2, height, width)
        sample = ShardSample(reader, row, pixel_format, verify=False)
        shown.append(Shown(row.key, sample.image(window), sample.mask(window)))
    return shown

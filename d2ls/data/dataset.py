"""From a work order to a batch: read, decode, check, augment, collect. What a worker process runs."""

from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from d2ls.data.cache import CacheConfig, SplitShards, open_reader
from d2ls.data.collate import Batch, BatchBuilder
from d2ls.data.decode import PixelFormat
from d2ls.data.orders import BatchSpec, SampleSpec
from d2ls.data.photometric import Transforms
from d2ls.data.reader import ShardReader
from d2ls.data.samples import Mosaic, SampleView, ShardSample
from d2ls.data.transforms import Augmentation, Crop, draw_crop
from d2ls.errors import D2LSError, DataError
from d2ls.labels import IGNORE
from d2ls.shards.index import IndexRow

Verify = Literal["always", "first", "never"]
"""When a member is compared with its checksum: each time, the first time a process reads it, or never."""

BadSamples = Literal["raise", "skip"]
"""What happens on a damaged sample."""

_ANTIALIAS = 0.6  # below this zoom, pixels are averaged instead of interpolated


@dataclass
class BatchDataset:
    """Makes batches from orders; the same batch from the same order, in any process.

    Attributes:
        facts: where the shards lie, and their checksums.
        layout: what samples look like.
        augmentation: random changes of training; None makes evaluation batches.
        window: side of evaluation windows; None for whole samples.
        bad_samples: `raise`, or `skip` to put an empty image without labels in place of a damaged sample.
        cache: local cache of an object store.
        verify: when to compare checksums.
    """

    facts: SplitShards
    layout: PixelFormat
    augmentation: Augmentation | None = None
    window: int | None = None
    bad_samples: BadSamples = "raise"
    cache: CacheConfig | None = None
    verify: Verify = "first"

    def __post_init__(self) -> None:
        self._files: ShardReader | None = None
        self._transforms: Transforms | None = None
        self._seen = bytearray()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": None, "_transforms": None, "_seen": bytearray()}

    def __getitem__(self, order: BatchSpec) -> "Batch | D2LSError":
        """Makes a batch. An error comes back as a value, so that it crosses processes in one piece."""
        builder = BatchBuilder(len(order.samples))
        valid, skipped = [], []
        for place, sample in enumerate(order.samples):
            good = sample.valid
            try:
                image, mask = self.make(sample)
            except D2LSError as error:
                if self.bad_samples == "raise" or not isinstance(error, DataError):
                    return error
                skipped.append(str(error))
                image, mask, good = *self._blank(sample), False
            if not good:
                mask = np.full_like(mask, IGNORE)
            builder.put(place, image, mask)
            valid.append(good)
        return builder.build(order.samples, valid, skipped)

    def make(self, order: SampleSpec) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
        """Makes one sample.

        Returns:
            Image H W C (uint8, or float32 with raw values) and labels H W (uint8).

        Raises:
            DataError: the sample, or a partner of its mosaic, is damaged.
            StorageError: a shard cannot be read.
        """
        if self.augmentation is None:
            return self._evaluation_sample(order)
        assert order.seed is not None
        generator = order.seed.augment_generator()
        picture: SampleView = self._open(order.record)
        if order.partners:
            picture = Mosaic([picture, *(self._open(partner) for partner in order.partners)], generator)
        crop = draw_crop(picture, self.augmentation, generator)
        image, mask = cut(picture, crop, self.augmentation.crop_size, self.layout.batch_dtype)
        if self._transforms is None:
            self._transforms = Transforms(self.augmentation, self.layout.max_value, self.layout.scale)
        return self._transforms(image, mask, generator)

    def _evaluation_sample(self, order: SampleSpec) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
        picture = self._open(order.record)
        box = order.box or (0, 0, picture.height, picture.width)
        image, mask = picture.image(box), picture.mask(box)
        size = self.window
        if size is None or mask.shape == (size, size):
            return image.astype(self.layout.batch_dtype, copy=False), mask
        return _padded(image, mask, (0, 0), size, self.layout.batch_dtype)

    def _open(self, record: IndexRow) -> ShardSample:
        if self._files is None:
            self._files = open_reader(self.facts, self.cache)
        verify = self.verify == "always" or (self.verify == "first" and self._is_new(record.row))
        return ShardSample(self._files, record, self.layout, verify=verify)

    def _is_new(self, row: int) -> bool:
        byte, bit = row >> 3, 1 << (row & 7)
        if byte >= len(self._seen):
            self._seen.extend(bytes(byte + 1 - len(self._seen)))
        new = not self._seen[byte] & bit
        self._seen[byte] |= bit
        return new

    def _blank(self, order: SampleSpec) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
        if self.augmentation is not None:
            height = width = self.augmentation.crop_size
        elif self.window is not None:
            height = width = self.window
        else:
            height, width = order.record.height, order.record.width
        image = np.zeros((height, width, self.layout.channels), self.layout.batch_dtype)
        return image, np.full((height, width), IGNORE, np.uint8)


def cut(
    picture: SampleView, crop: Crop, size: int, dtype: np.dtype[Any]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
    """Cuts a crop, then scales it: image and labels share the window, and pixel centres fall on pixel centres.

    Args:
        picture: what to cut from.
        crop: source window and target.
        size: side of the result; beyond the target the image is 0 and the labels are 255.
        dtype: of the resulting image.

    Returns:
        Image (size size C) and labels (size size).
    """
    image, mask = picture.image(crop.source), picture.mask(crop.source)
    height, width = crop.target[2:]
    if (height, width) != mask.shape:
        shrinks = height < _ANTIALIAS * mask.shape[0]
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        image = _resized(image, (height, width), method)
        mask = np.asarray(cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)
    if (height, width) == (size, size):
        return image.astype(dtype, copy=False), mask
    return _padded(image, mask, crop.target[:2], size, dtype)


def _resized(image: npt.NDArray[Any], size: tuple[int, int], method: int) -> npt.NDArray[Any]:
    """Scales an image (H W C); OpenCV takes four channels at a time."""
    groups = [image[..., first : first + 4] for first in range(0, image.shape[2], 4)]
    scaled = [cv2.resize(group, size[::-1], interpolation=method).reshape(*size, -1) for group in groups]
    return np.concatenate(scaled, axis=2) if len(scaled) > 1 else scaled[0]


def _padded(
    image: npt.NDArray[Any], mask: npt.NDArray[np.uint8], at: tuple[int, int], size: int, dtype: np.dtype[Any]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
    place = (slice(at[0], at[0] + mask.shape[0]), slice(at[1], at[1] + mask.shape[1]))
    framed = np.zeros((size, size, image.shape[2]), dtype)
    framed[place] = image
    labels = np.full((size, size), IGNORE, np.uint8)
    labels[place] = mask
    return framed, labels

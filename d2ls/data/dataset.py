"""Makes batches from their specs: read, decode, check, transform, collate. This is what a worker process runs."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from d2ls.data.cache import CacheConfig, SplitShards, open_reader
from d2ls.data.collate import Batch, BatchBuilder
from d2ls.data.mosaic import Mosaic
from d2ls.data.reader import SampleView, ShardReader, ShardSample
from d2ls.data.sampler import BatchSpec, SampleSpec
from d2ls.data.transforms import Augmentation, Transforms, cut, draw_crop, pad
from d2ls.errors import D2LSError, DataError
from d2ls.labels import IGNORE
from d2ls.shards import IndexRow
from d2ls.shards.codecs import PixelFormat
from d2ls.window import Window, window_around

Verify = Literal["always", "first", "never"]
"""When a member is compared with its checksum: each time, the first time a process reads it, or never."""

BadSamples = Literal["raise", "skip"]
"""What happens if a sample is damaged."""


@dataclass
class BatchDataset(Dataset[Any]):
    """Maps a `BatchSpec` to its batch; the same spec gives the same batch in any process.

    Attributes:
        shards: where the shards lie, and their checksums.
        pixel_format: what samples must look like.
        augmentation: random changes of training; None makes evaluation batches.
        window: side of evaluation windows; None for whole samples.
        bad_samples: `raise`, or `skip` to replace a damaged sample by an empty image without labels.
        cache: local cache of an object store.
        verify: when to compare checksums.
    """

    shards: SplitShards
    pixel_format: PixelFormat
    augmentation: Augmentation | None = None
    window: int | None = None
    bad_samples: BadSamples = "raise"
    cache: CacheConfig | None = None
    verify: Verify = "first"

    def __post_init__(self) -> None:
        self._reader: ShardReader | None = None
        self._transforms: Transforms | None = None
        self._verified = bytearray()  # a bit per row of the split

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None, "_transforms": None, "_verified": bytearray()}

    def __getitem__(self, spec: BatchSpec) -> Batch | D2LSError:
        """Makes a batch. Returns an error instead of raising it, so that it crosses processes unchanged."""
        builder = BatchBuilder(len(spec.samples))
        valid, skipped = [], []
        for place, sample in enumerate(spec.samples):
            good = sample.valid
            try:
                image, mask = self.load_sample(sample) if good else self._blank(sample)
            except D2LSError as error:
                if self.bad_samples == "raise" or not isinstance(error, DataError):
                    return error
                skipped.append(str(error))
                image, mask, good = *self._blank(sample), False
            builder.put(place, image, mask)
            valid.append(good)
        return builder.build(spec.samples, valid, skipped)

    def load_sample(self, spec: SampleSpec) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
        """Makes one sample.

        Returns:
            Image H W C (uint8, or float32 with raw values) and labels H W (uint8).

        Raises:
            DataError: the sample, or a partner of its mosaic, is damaged.
            StorageError: a shard cannot be read.
        """
        if self.augmentation is None:
            return self._evaluation_sample(spec)
        assert spec.seed is not None
        generator = spec.seed.augment_generator()
        view: SampleView = self._open(spec.row)
        if spec.partners:
            view = Mosaic([view, *(self._open(partner) for partner in spec.partners)], generator)
        crop = draw_crop(view, self.augmentation, generator)
        image, mask = cut(view, crop, self.augmentation.crop_size, self.pixel_format.batch_dtype)
        if self._transforms is None:
            max_value, scale = self.pixel_format.max_value, self.pixel_format.scale
            self._transforms = Transforms(self.augmentation, max_value, scale)
        return self._transforms(image, mask, generator)

    def _evaluation_sample(self, spec: SampleSpec) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
        view = self._open(spec.row)
        part = spec.part or Window(0, 0, view.height, view.width)
        size, dtype = self.window, self.pixel_format.batch_dtype
        window = part if size is None else window_around(part, size, view.height, view.width)
        image, mask = view.image(window), np.full((window.height, window.width), IGNORE, np.uint8)
        mask[part.relative_to(window).slices] = view.mask(part)
        if size is None or mask.shape == (size, size):
            return image.astype(dtype, copy=False), mask
        return pad(image, mask, (0, 0), size, dtype)

    def _open(self, row: IndexRow) -> ShardSample:
        if self._reader is None:
            self._reader = open_reader(self.shards, self.cache)
        byte, bit = row.number >> 3, 1 << (row.number & 7)
        if byte >= len(self._verified):
            self._verified.extend(bytes(byte + 1 - len(self._verified)))
        verify = self.verify == "always" or (self.verify == "first" and not self._verified[byte] & bit)
        sample = ShardSample(self._reader, row, self.pixel_format, verify=verify)
        self._verified[byte] |= bit  # only now: a sample that fails is checked again the next time
        return sample

    def _blank(self, spec: SampleSpec) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
        if self.augmentation is not None:
            height = width = self.augmentation.crop_size
        elif self.window is not None:
            height = width = self.window
        else:
            height, width = spec.row.height, spec.row.width
        image = np.zeros((height, width, self.pixel_format.channels), self.pixel_format.batch_dtype)
        return image, np.full((height, width), IGNORE, np.uint8)

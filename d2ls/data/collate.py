"""A batch, as the training and evaluation loops receive it, and its assembly from samples."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from d2ls.data.sampler import SampleSpec
from d2ls.window import Window


@dataclass(frozen=True)
class Batch:
    """Some samples of one shape.

    Attributes:
        images: B C H W, uint8, or float32 if the images have more than 8 bits; raw values, not normalised.
        labels: B H W, uint8, class ids 0..K-1 or 255 for pixels without a label.
        keys: B keys of the samples; for a mosaic, the key of its first sample.
        scenes: B scenes they were cut from.
        valid: B, bool. False if a sample only fills up an evaluation batch or was skipped as damaged: all its labels
            are 255.
        skipped: error messages of the samples skipped in this batch.
        parts: of evaluation batches, the part of its sample that each image is scored in; None: all of it.
        sizes: B heights and widths of the samples.
    """

    images: Tensor
    labels: Tensor
    keys: tuple[str, ...]
    scenes: tuple[str, ...]
    valid: Tensor
    skipped: tuple[str, ...] = ()
    parts: tuple[Window | None, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def pin_memory(self) -> Self:
        """Returns the batch in page-locked memory, from which copies to a GPU overlap with computation."""
        return replace(
            self,
            images=self.images.pin_memory(),
            labels=self.labels.pin_memory(),
            valid=self.valid.pin_memory(),
        )

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> Self:
        """Returns the batch on a device."""
        images, labels, valid = (
            tensor.to(device, non_blocking=non_blocking) for tensor in (self.images, self.labels, self.valid)
        )
        return replace(self, images=images, labels=labels, valid=valid)


class BatchBuilder:
    """Writes samples into the tensors of a batch as they are made.

    Args:
        size: B, number of samples.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._images: Tensor | None = None
        self._labels: Tensor | None = None

    def put(self, place: int, image: npt.NDArray[Any], mask: npt.NDArray[np.uint8]) -> None:
        """Writes one sample: image H W C, labels H W. The first one sets shape and dtype."""
        if self._images is None or self._labels is None:
            height, width, channels = image.shape
            dtype = torch.from_numpy(image[:0]).dtype
            self._images = torch.empty((self._size, channels, height, width), dtype=dtype)
            self._labels = torch.empty((self._size, height, width), dtype=torch.uint8)
        np.copyto(self._images[place].numpy(), image.transpose(2, 0, 1))
        np.copyto(self._labels[place].numpy(), mask)

    def build(self, specs: Sequence[SampleSpec], valid: Sequence[bool], skipped: Sequence[str]) -> Batch:
        """Returns the batch."""
        assert self._images is not None
        assert self._labels is not None
        return Batch(
            images=self._images,
            labels=self._labels,
            keys=tuple(spec.row.key for spec in specs),
            scenes=tuple(spec.row.scene for spec in specs),
            valid=torch.tensor(list(valid)),
            skipped=tuple(skipped),
            parts=tuple(spec.part for spec in specs),
            sizes=tuple((spec.row.height, spec.row.width) for spec in specs),
        )

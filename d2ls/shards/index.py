"""The index: a row per sample. `SplitIndex` holds the rows of a split as arrays, `IndexRow` one of them."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from d2ls.errors import ShardError

INDEX_FILE = "index.parquet"

INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # unique in the set, without dots
        ("split", pa.string()),
        ("scene", pa.string()),  # scene the sample was cut from
        ("shard", pa.string()),  # path of the tar below the root, with forward slashes
        ("image_suffix", pa.string()),  # png, webp, jpg or tif
        ("image_offset", pa.int64()),  # first byte of the member's content in the tar
        ("image_length", pa.int64()),
        ("image_crc32", pa.uint32()),
        ("mask_offset", pa.int64()),
        ("mask_length", pa.int64()),
        ("mask_crc32", pa.uint32()),
        ("meta_offset", pa.int64()),
        ("meta_length", pa.int64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("class_pixels", pa.list_(pa.int64())),  # K counts; ignored pixels are height x width less their sum
    ]
)
"""Columns of the index. Rows stand in the order split, shard, offset."""


class IndexRow(NamedTuple):
    """All that is needed to read one sample: a row of the index, and its number within the split."""

    number: int
    key: str
    scene: str
    shard: str
    image_suffix: str
    image_offset: int
    image_length: int
    image_crc32: int
    mask_offset: int
    mask_length: int
    mask_crc32: int
    meta_offset: int
    meta_length: int
    height: int
    width: int


_NUMBERS = tuple(
    name for name in IndexRow._fields if name not in ("number", "key", "scene", "shard", "image_suffix")
)


@dataclass(frozen=True)
class SplitIndex:
    """The rows of a split, column by column. It stays in the training process; workers get single rows.

    Attributes:
        shards: N, number of the shard of each row, in ascending order.
        shard_names: path of each shard below the root of the set.
        class_pixels: column of N lists of K counts.
    """

    shards: npt.NDArray[np.int64]
    shard_names: tuple[str, ...]
    class_pixels: pa.Array
    _texts: dict[str, pa.Array]
    _numbers: dict[str, npt.NDArray[np.integer]]

    @classmethod
    def from_table(cls, rows: pa.Table, *, where: str) -> Self:
        """Takes the index rows of a split.

        Args:
            rows: rows with `INDEX_SCHEMA`.
            where: the shard set, for error messages.

        Raises:
            ShardError: the rows of one shard do not stand together.
        """
        codes = _combined(rows, "shard").dictionary_encode()
        numbers = codes.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        if (np.diff(numbers) < 0).any():
            raise ShardError(f"{where}: rows of one shard are apart in the index; shard the data set again")
        return cls(
            shards=numbers,
            shard_names=tuple(codes.dictionary.to_pylist()),
            class_pixels=_combined(rows, "class_pixels"),
            _texts={name: _combined(rows, name) for name in ("key", "scene", "image_suffix")},
            _numbers={name: _combined(rows, name).to_numpy(zero_copy_only=False) for name in _NUMBERS},
        )

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, number: int) -> IndexRow:
        key, scene, suffix = (column[number].as_py() for column in self._texts.values())
        shard = self.shard_names[self.shards[number]]
        numbers = (int(self._numbers[name][number]) for name in _NUMBERS)
        return IndexRow(number, key, scene, shard, suffix, *numbers)

    @cached_property
    def shard_lengths(self) -> npt.NDArray[np.int64]:
        """S, samples of each shard in the order of the index."""
        return np.bincount(self.shards, minlength=len(self.shard_names))

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """N x 2, height and width of each sample."""
        return np.stack([self._numbers["height"], self._numbers["width"]], axis=1).astype(np.int64)

    def pixels_by_class(self) -> npt.NDArray[np.int64]:
        """Returns N x K pixel counts."""
        flat = self.class_pixels.flatten().to_numpy(zero_copy_only=False)
        return flat.astype(np.int64).reshape(len(self), -1)


def _combined(rows: pa.Table, name: str) -> pa.Array:
    column = rows[name]
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)

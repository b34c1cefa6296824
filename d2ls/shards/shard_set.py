"""Opening a shard set: its card and its index."""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from d2ls import storage
from d2ls.errors import ShardError
from d2ls.shards.card import CARD_FILE, DatasetCard
from d2ls.shards.index import INDEX_FILE, INDEX_SCHEMA, SplitIndex


@dataclass(frozen=True)
class ShardSet:
    """An opened shard set: its location, card and index. Small enough to send to workers.

    Attributes:
        uri: folder of the set.
        card: its card.
        index: its rows, with `INDEX_SCHEMA`.
    """

    uri: str
    card: DatasetCard
    index: pa.Table

    @classmethod
    def open(cls, uri: str) -> Self:
        """Opens a finished shard set.

        Raises:
            ShardError: no card or index there (not finished, or another folder), or an unknown version.
        """
        card_uri, index_uri = storage.join(uri, CARD_FILE), storage.join(uri, INDEX_FILE)
        if not storage.exists(card_uri) or not storage.exists(index_uri):
            raise ShardError(
                f"{uri}: no finished shard set here ({CARD_FILE} and {INDEX_FILE} make one). "
                "Make it with `python -m pipeline.shard RECIPE`, or point `shards.uri` at another folder."
            )
        card = DatasetCard.from_json(storage.read_bytes(card_uri).decode(), where=card_uri)
        try:
            index = pq.read_table(pa.BufferReader(storage.read_bytes(index_uri))).cast(INDEX_SCHEMA)
        except (pa.ArrowException, ValueError) as error:
            raise ShardError(f"{index_uri}: not a shard index ({error}); shard the data set again") from error
        return cls(uri, card, index)

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, in the card's order."""
        return tuple(self.card.splits)

    def rows(self, split: str) -> pa.Table:
        """Returns the index rows of a split.

        Raises:
            ShardError: no such split; names those that exist.
        """
        if split not in self.card.splits:
            raise ShardError(f"{self.uri}: no split {split!r}; it has {list(self.splits)}")
        return self.index.filter(pc.equal(self.index["split"], split))

    def shard_uri(self, shard: str) -> str:
        """Returns the full location of a tar named in the index."""
        return storage.join(self.uri, shard)

    def split_index(self, split: str) -> SplitIndex:
        """Returns the index of a split as arrays.

        Raises:
            ShardError: no such split, or the rows of one shard do not stand together.
        """
        return SplitIndex.from_table(self.rows(split), where=self.uri)

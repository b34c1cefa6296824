"""The shard contract: what lies in a folder of shards, and how to open it. Torch is not needed here.

    <root>/card.json             dataset card: classes, statistics, tiling, counts, digests
    <root>/index.parquet         one row per sample: where its members lie in which tar, and what they hold
    <root>/<split>/*.tar         plain WebDataset tars: {key}.image.<suffix>, {key}.mask.png, {key}.json

`sharding` writes a set, `d2ls.data` reads it, and so does any WebDataset reader. `codecs` decodes images and labels.
"""

from d2ls.shards.card import CARD_FILE, SCHEMA_VERSION, DatasetCard, ShardFile, SplitCard
from d2ls.shards.index import INDEX_FILE, INDEX_SCHEMA, IndexRow, SplitIndex
from d2ls.shards.shard_set import ShardSet

__all__ = [
    "CARD_FILE",
    "INDEX_FILE",
    "INDEX_SCHEMA",
    "SCHEMA_VERSION",
    "DatasetCard",
    "IndexRow",
    "ShardFile",
    "ShardSet",
    "SplitCard",
    "SplitIndex",
]

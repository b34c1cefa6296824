"""The manifest of a finished shard: its index rows, and what the index needs from the worker that wrote it."""

import json
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from d2ls import storage
from d2ls.shards import INDEX_SCHEMA, ShardFile
from sharding.pixel_statistics import PixelSums
from sharding.plan import ShardTask

SCHEMA = INDEX_SCHEMA.append(pa.field("digest", pa.string()))
"""Columns of the rows: those of the index, and the digest of a sample's content."""

_KEY = b"d2ls"


@dataclass(frozen=True)
class ShardManifest:
    """The content of a finished shard. A shard is finished when its manifest exists.

    Attributes:
        fingerprint: of the task.
        shard: the tar.
        rows: a row per sample, see `SCHEMA`.
        sums: of the pixels; empty if the task asks for no statistics.
        unexpected_labels: raw label code (as text) to number of pixels, for the codes that the task counts.
    """

    fingerprint: str
    shard: ShardFile
    rows: pa.Table
    sums: PixelSums
    unexpected_labels: dict[str, int]

    def to_bytes(self) -> bytes:
        """Returns the manifest as a Parquet file: the rows, and the rest as JSON in its metadata."""
        rest = {
            "fingerprint": self.fingerprint,
            "shard": asdict(self.shard),
            "sums": asdict(self.sums),
            "unexpected_labels": self.unexpected_labels,
        }
        sink = pa.BufferOutputStream()
        pq.write_table(self.rows.replace_schema_metadata({_KEY: json.dumps(rest)}), sink, compression="zstd")
        return bytes(sink.getvalue().to_pybytes())

    @classmethod
    def from_bytes(cls, content: bytes) -> "ShardManifest":
        """Inverse of `to_bytes`.

        Raises:
            ValueError, KeyError, TypeError: not a manifest, or a damaged one.
        """
        rows = pq.read_table(pa.BufferReader(content))
        rest = json.loads((rows.schema.metadata or {})[_KEY])
        return cls(
            rest["fingerprint"],
            ShardFile(**rest["shard"]),
            rows.replace_schema_metadata(None),
            PixelSums(**rest["sums"]),
            rest["unexpected_labels"],
        )


def finished_manifest(task: ShardTask, uri: str) -> ShardManifest | None:
    """Returns the manifest of a shard that was finished by the same task and whose tar is whole, else None."""
    location = storage.join(uri, task.manifest)
    if not storage.exists(location):
        return None
    try:
        manifest = ShardManifest.from_bytes(storage.read_bytes(location))
    except (ValueError, KeyError, TypeError, OSError):
        return None
    size = storage.info(storage.join(uri, task.path)).size
    return manifest if manifest.fingerprint == task.fingerprint and size == manifest.shard.bytes else None

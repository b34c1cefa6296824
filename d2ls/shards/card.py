"""The dataset card: the description of a shard set."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from d2ls.errors import ShardError
from d2ls.labels import ClassTable

SCHEMA_VERSION = 3
"""Version of card and index; a reader refuses any other. 2: BLAKE3 in place of SHA-256. 3: float images, `scale`."""

CARD_FILE = "card.json"


@dataclass(frozen=True)
class ShardFile:
    """One finished tar: path below the root, size in bytes, BLAKE3 (hex, as `b3sum` prints it), number of samples."""

    path: str
    bytes: int
    blake3: str
    samples: int


@dataclass(frozen=True)
class SplitCard:
    """Counts, digest and shards of one split.

    Attributes:
        samples: number of samples.
        scenes: number of distinct scenes they were cut from.
        class_pixels: K pixel counts.
        ignored_pixels: pixels labelled 255.
        digest: BLAKE3 (hex) over decoded content, label map and tiling; independent of paths and codecs.
        shards: the tars, in order.
    """

    samples: int
    scenes: int
    class_pixels: tuple[int, ...]
    ignored_pixels: int
    digest: str
    shards: tuple[ShardFile, ...]


@dataclass(frozen=True)
class DatasetCard:
    """Description of a shard set.

    Attributes:
        name: data set name, as shown in runs and registry.
        source: reader that made it (`loveda`, `custom`, ...).
        protocol: `clean` or `paper`.
        classes: the K classes.
        bands: names of the image channels, in order.
        dtype: `uint8`, `uint16`, or `float32` with NaN where a band holds no data.
        max_value: value that stands for 1.0; statistics are over pixel / max_value. 1 for `float32`.
        mean: per channel, over the unpadded pixels with data of the training split, clipped to `scale`.
        std: likewise.
        ground_sampling_distance: metres per pixel, None if unknown.
        tiling: size, stride and padding of each split, as in the recipe.
        codec: image codec and its settings.
        scene_check: `disjoint` (no scene in two splits) or `unknown` (the data set names no scenes).
        splits: split name to its counts.
        digest: BLAKE3 over the splits' digests.
        scale: of `float32`, per channel: the values that stand for dark and bright; the network clips to them. None
            for integers.
        reading: settings with which files were read, where they do not state them: `nodata`, `band_order`.
        license: licence of the data, as the recipe states it.
        extra: further entries of the source, shown but not interpreted.
    """

    name: str
    source: str
    protocol: str
    classes: ClassTable
    bands: tuple[str, ...]
    dtype: str
    max_value: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    ground_sampling_distance: float | None
    tiling: Mapping[str, Any]
    codec: Mapping[str, Any]
    scene_check: str
    splits: Mapping[str, SplitCard]
    digest: str
    scale: tuple[tuple[float, float], ...] | None = None
    reading: Mapping[str, Any] = field(default_factory=dict)
    license: str = "unknown"
    extra: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """Returns the card as indented JSON text."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["classes"] = self.classes.to_json()
        values["splits"] = {name: asdict(split) for name, split in self.splits.items()}
        return json.dumps(values, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str = CARD_FILE) -> Self:
        """Inverse of `to_json`.

        Raises:
            ShardError: not a card, or of another schema version.
        """
        try:
            values = json.loads(text)
            version = values["schema_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise ShardError(f"{where}: not a dataset card ({error!r})") from error
        if version != SCHEMA_VERSION:
            newer = isinstance(version, int) and version > SCHEMA_VERSION
            way_out = "upgrade" if newer else "shard the data set again"
            raise ShardError(
                f"{where}: schema version {version}, this release reads {SCHEMA_VERSION}: {way_out}"
            )
        try:
            values["classes"] = ClassTable.from_json(values["classes"])
            values["splits"] = {name: _split_card(split) for name, split in values["splits"].items()}
            for name in ("bands", "mean", "std"):
                values[name] = tuple(values[name])
            if values["scale"] is not None:
                values["scale"] = tuple((low, high) for low, high in values["scale"])
            return cls(**values)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ShardError(
                f"{where}: the card is incomplete ({error!r}); shard the data set again"
            ) from error


def _split_card(values: Mapping[str, Any]) -> SplitCard:
    shards = tuple(ShardFile(**shard) for shard in values["shards"])
    return SplitCard(**{**values, "class_pixels": tuple(values["class_pixels"]), "shards": shards})

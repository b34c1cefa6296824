"""The record in a map of how it was made. It identifies files of this program; their names do not."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Self

from d2ls import storage
from pipeline.prediction.tags import MAP_TAG, read_tags


@dataclass(frozen=True)
class Provenance:
    """Written into map, probabilities and overlay, and beside the parts of an unfinished map.

    Attributes:
        scene: file name of the scene.
        place: digest of the scene's location; distinguishes scenes with the same name.
        stamp: size, time and, in an object store, tag of the scene's file; then the same for files beside it.
        model: digest of the model's files.
        settings: digest of all other settings that decide the values of the map and of files derived from it.
    """

    scene: str
    place: str
    stamp: str
    model: str
    settings: str

    @classmethod
    def of(cls, source: str, sidecars: Sequence[str], model: str, settings: dict[str, Any]) -> Self:
        """Describes the map of a scene.

        Args:
            source: location of the scene.
            sidecars: state of the files beside it that belong to it, see `RasterInfo`.
            model: digest of the model's files.
            settings: plain values.

        Raises:
            StorageError: there is no such scene.
        """
        place = os.path.realpath(storage.local_path(source)) if storage.is_local(source) else source
        stamp = "+".join((storage.fingerprint(source), *([_digest(list(sidecars))] if sidecars else [])))
        return cls(PurePosixPath(source).name, _digest(place), stamp, model, _digest(settings))

    @property
    def file_stamp(self) -> str:
        """The part of `stamp` for the scene's own file."""
        return self.stamp.partition("+")[0]

    def to_json(self) -> str:
        """Returns one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self | None:
        """Inverse of `to_json`; None for any other text."""
        try:
            values = json.loads(text)
            return cls(**values) if all(isinstance(value, str) for value in values.values()) else None
        except (ValueError, TypeError, AttributeError, RecursionError):
            return None

    def is_same_map(self, other: "Provenance") -> bool:
        """Returns whether both stand for the same values. A scene that was only moved counts as the same."""
        return replace(self, place="") == replace(other, place="")

    def is_earlier_state(self, other: "Provenance") -> bool:
        """Returns whether the other map is of the same scene, model and settings, before the scene changed."""
        return self.stamp != other.stamp and replace(self, stamp="") == replace(other, stamp="")

    def difference(self, other: "Provenance") -> str:
        """Describes how the other map differs from this one."""
        if self.scene != other.scene or (self.stamp != other.stamp and self.place != other.place):
            return f"of another scene ({other.scene})"
        if self.model != other.model:
            return "made with another model"
        return "made with other options (bands, window, overlap, tta, scale range, resampling, area, polygons ...)"


def read_provenance(uri: str) -> Provenance | None:
    """Reads the record from a file; None if the file has none, or cannot be read."""
    return Provenance.from_json(read_tags(uri).get(MAP_TAG, ""))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]

"""The description of a trained model. A model is a folder: `model.safetensors` (weights), `model.json` (description).

Checkpoints hold such a bundle, the registry holds one, prediction and evaluation read one. `d2ls.models.saving` writes
and loads it with its weights; this file needs no torch. There is no pickle in a bundle.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from d2ls.errors import WeightsError
from d2ls.labels import ClassTable

if TYPE_CHECKING:
    from torch import nn

    from d2ls.shards import DatasetCard

WEIGHTS_FILE = "model.safetensors"
INFO_FILE = "model.json"
BUNDLE_VERSION = 1
PIXEL_TYPES = ("uint8", "uint16", "float32")
EDITED_HINT = "Was the file edited? Take the model from its run or registry again"


@dataclass(frozen=True)
class ModelInfo:
    """Everything that is needed to use trained weights.

    Attributes:
        config: arguments of `d2ls.models.build_model`.
        normalization: arguments of `d2ls.models.Normalization`: mean, std and max_value of the raw pixels.
        classes: the K classes.
        bands: names of the image channels, in order.
        dtype: `uint8`, `uint16` or `float32` (NaN: a band without data), of the raw pixels.
        window: side of the training crop in pixels; prediction looks through windows of this size.
        ground_sampling_distance: metres per pixel of the training data, None if unknown.
        dataset: name, protocol and digest of the training data.
        temperature: logits are divided by it before the softmax, see `d2ls.inference.calibration`; None: never fitted.
        reading: settings with which the training data was read, where its files do not state them (`nodata`,
            `band_order`).
        extra: further entries (run, epoch, scores), shown but not interpreted.
    """

    config: Mapping[str, Any]
    normalization: Mapping[str, Any]
    classes: ClassTable
    bands: tuple[str, ...]
    dtype: str
    window: int
    ground_sampling_distance: float | None = None
    temperature: float | None = None
    dataset: Mapping[str, str] = field(default_factory=dict)
    reading: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    version: int = BUNDLE_VERSION

    @property
    def nodata(self) -> float | None:
        """Value of pixels without data in the training images, in addition to the files' tags, or None."""
        value: float | None = self.reading.get("nodata")
        return value

    @classmethod
    def from_card(cls, network: "nn.Module", card: "DatasetCard", *, window: int, **extra: Any) -> Self:
        """Describes a network (with `.config` and `.normalization`) trained on a shard set."""
        return cls(
            config=dict(network.config),  # type: ignore[arg-type]
            normalization=network.normalization.to_json(),  # type: ignore[operator, union-attr]
            classes=card.classes,
            bands=card.bands,
            dtype=card.dtype,
            window=window,
            ground_sampling_distance=card.ground_sampling_distance,
            dataset={"name": card.name, "protocol": card.protocol, "digest": card.digest},
            reading=card.reading,
            extra=extra,
        )

    def to_json(self) -> str:
        """Returns indented JSON text."""
        return json.dumps({**asdict(self), "classes": self.classes.to_json()}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str = INFO_FILE) -> Self:
        """Inverse of `to_json`.

        Args:
            text: JSON.
            where: what to name in errors: the model that was asked for, or the file.

        Raises:
            WeightsError: not a model description, an impossible value, or of a newer version.
        """
        try:
            values = json.loads(text)
            version = values["version"]
            if version > BUNDLE_VERSION:
                raise WeightsError(
                    f"{where}: model version {version}, this release reads up to {BUNDLE_VERSION}; update it"
                )
            if unknown := sorted(set(values) - {item.name for item in fields(cls)}):
                raise WeightsError(
                    f"{where}: {INFO_FILE} holds unknown key(s) {', '.join(unknown)}. {EDITED_HINT}"
                )
            values["classes"] = ClassTable.from_json(values["classes"])
            values["bands"] = tuple(values["bands"])
            info = cls(**values)
            problem = next(info.problems(), None)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise WeightsError(
                f"{where}: {INFO_FILE} is not the description of a model ({error!r})"
            ) from error
        if problem:
            raise WeightsError(f"{where}: {INFO_FILE}: {problem}. {EDITED_HINT}")
        return info

    def problems(self) -> Iterator[str]:
        """Yields a clause for each contradictory or impossible value."""
        config: object = self.config
        normalization: object = self.normalization
        if not isinstance(config, Mapping) or not isinstance(normalization, Mapping):
            yield "config and normalization must be mappings"
            return
        network = {"num_classes": self.classes.num_classes, "bands": len(self.bands)}
        for key, here in network.items():
            if config.get(key, here) != here:
                names = self.classes.names if key == "num_classes" else self.bands
                yield f"config.{key} is {config[key]!r}, but {here} are listed: {', '.join(map(str, names))}"
        for key in ("pretrained", "weights"):
            if config.get(key):
                yield f"config.{key} is {config[key]!r}; a saved model holds all its weights, remove the key"
        reading: object = self.reading
        if not isinstance(reading, Mapping) or not isinstance(reading.get("nodata"), int | float | None):
            yield f"reading is {reading!r}; it is a mapping whose nodata is a pixel value"
        for key in ("mean", "std"):
            if len(normalization.get(key, self.bands)) != len(self.bands):
                yield f"normalization.{key} has {len(normalization[key])} value(s) for {len(self.bands)} band(s)"
        if not isinstance(self.window, int) or self.window < 1:
            yield f"window is {self.window!r}; it is a side in pixels, at least 1"
        if self.dtype not in PIXEL_TYPES:
            yield f"dtype is {self.dtype!r}; allowed are {', '.join(PIXEL_TYPES)}"
        distance = self.ground_sampling_distance
        if distance is not None and not (isinstance(distance, int | float) and 0 < distance < math.inf):
            yield f"ground_sampling_distance is {distance!r}; it is metres per pixel, or null"
        temperature = self.temperature
        if temperature is not None and not (
            isinstance(temperature, int | float) and 0 < temperature < math.inf
        ):
            yield f"temperature is {temperature!r}; it is a positive number, or null"


def read_info(folder: Path, *, where: str = "") -> ModelInfo:
    """Reads the description in a bundle's folder; the weights are not touched.

    Raises:
        WeightsError: missing, unreadable or impossible.
    """
    where = where or str(folder)
    try:
        text = (folder / INFO_FILE).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise WeightsError(
            f"{where}: no {INFO_FILE}; a model is a folder with {INFO_FILE} and {WEIGHTS_FILE}"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{where}: {INFO_FILE} cannot be read: {error}") from error
    return ModelInfo.from_json(text, where=where)

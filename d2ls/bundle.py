"""A trained model as a folder: `model.safetensors` (weights) and `model.json` (everything else), no pickle.

Checkpoints hold one, the registry holds one, prediction and evaluation read one.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from d2ls.errors import WeightsError
from d2ls.labels import ClassTable

if TYPE_CHECKING:
    from torch import Tensor, nn

    from d2ls.shards import DatasetCard

WEIGHTS_FILE = "model.safetensors"
INFO_FILE = "model.json"
BUNDLE_VERSION = 1


@dataclass(frozen=True)
class ModelInfo:
    """What one must know to use trained weights.

    Attributes:
        config: arguments of `d2ls.model.build_model`.
        normalization: arguments of `d2ls.model.Normalization`: mean, std and max_value of the raw pixels.
        classes: the K classes.
        bands: names of the image channels, in order.
        dtype: `uint8` or `uint16`, of the raw pixels.
        window: side of the training crop in pixels; prediction looks through windows of this size.
        ground_sampling_distance: metres a pixel of the training data, None where unknown.
        dataset: name, protocol and digest of the training data.
        extra: further facts (run, epoch, scores), shown but not interpreted.
    """

    config: Mapping[str, Any]
    normalization: Mapping[str, Any]
    classes: ClassTable
    bands: tuple[str, ...]
    dtype: str
    window: int
    ground_sampling_distance: float | None = None
    dataset: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    version: int = BUNDLE_VERSION

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
            extra=extra,
        )

    def to_json(self) -> str:
        """Returns indented JSON text."""
        return json.dumps({**asdict(self), "classes": self.classes.to_json()}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str = INFO_FILE) -> Self:
        """Inverse of `to_json`.

        Raises:
            WeightsError: not a model description, or of a newer version.
        """
        try:
            values = json.loads(text)
            version = values["version"]
            if version > BUNDLE_VERSION:
                raise WeightsError(
                    f"{where}: model version {version}, this release reads up to {BUNDLE_VERSION}"
                )
            values["classes"] = ClassTable.from_json(values["classes"])
            values["bands"] = tuple(values["bands"])
            return cls(**values)
        except (ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"{where}: not the description of a model ({error!r})") from error


def save_bundle(folder: Path, network: "nn.Module", info: ModelInfo) -> None:
    """Writes weights (every tensor of the state dict, on CPU) and description into an existing folder."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    write_bundle(folder, weights, info)


def write_bundle(folder: Path, weights: "Mapping[str, Tensor]", info: ModelInfo) -> None:
    """Writes a state dict (contiguous CPU tensors) and its description into an existing folder."""
    from safetensors.torch import save_file

    save_file(dict(weights), str(folder / WEIGHTS_FILE))
    (folder / INFO_FILE).write_text(info.to_json(), encoding="utf-8")


def load_bundle(folder: Path) -> tuple["nn.Module", ModelInfo]:
    """Rebuilds a network, on CPU in evaluation mode, from a folder.

    Raises:
        WeightsError: a file is missing, damaged, or does not fit the network it describes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from d2ls.model import Normalization, build_model

    for name in (INFO_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise WeightsError(
                f"{folder}: no {name}; a model is a folder with {INFO_FILE} and {WEIGHTS_FILE}"
            )
    info = ModelInfo.from_json(
        (folder / INFO_FILE).read_text(encoding="utf-8"), where=str(folder / INFO_FILE)
    )
    network = build_model(**info.config)
    network.normalization = Normalization.from_json(info.normalization)
    try:
        network.load_state_dict(load_file(str(folder / WEIGHTS_FILE)))
    except (RuntimeError, SafetensorError, OSError) as error:
        raise WeightsError(f"{folder / WEIGHTS_FILE}: weights do not fit {INFO_FILE}: {error}") from error
    return network.eval(), info

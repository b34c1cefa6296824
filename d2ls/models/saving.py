"""Writes a network and its description into a folder (a bundle, see `d2ls.bundle`), and loads it again."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from d2ls.bundle import EDITED_HINT, INFO_FILE, WEIGHTS_FILE, ModelInfo, read_info
from d2ls.errors import ConfigError, WeightsError
from d2ls.models.build import build_model
from d2ls.models.normalization import Normalization


def save_bundle(folder: Path, network: nn.Module, info: ModelInfo) -> None:
    """Writes weights (every tensor of the state dict, on CPU) and description into an existing folder."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    write_bundle(folder, weights, info)


def write_bundle(folder: Path, weights: Mapping[str, Tensor], info: ModelInfo) -> None:
    """Writes a state dict (contiguous CPU tensors) and its description into an existing folder."""
    save_file(dict(weights), str(folder / WEIGHTS_FILE))
    (folder / INFO_FILE).write_text(info.to_json(), encoding="utf-8")


def load_bundle(folder: Path, *, where: str = "") -> tuple[nn.Module, ModelInfo]:
    """Rebuilds a network from a folder. Nothing is downloaded.

    Args:
        folder: holds the two files.
        where: name of the model in errors; empty: the folder.

    Returns:
        The network, on CPU in evaluation mode, and its description.

    Raises:
        WeightsError: a file is missing, damaged, or does not fit the network it describes.
    """
    where = where or str(folder)
    info = read_info(folder, where=where)
    if not (folder / WEIGHTS_FILE).is_file():
        raise WeightsError(
            f"{where}: no {WEIGHTS_FILE}; a model is a folder with {INFO_FILE} and {WEIGHTS_FILE}"
        )
    try:
        network = build_model(**info.config)
        network.normalization = Normalization.from_json(info.normalization)
    except (ConfigError, TypeError, KeyError, ValueError) as error:
        raise WeightsError(
            f"{where}: {INFO_FILE} describes no network that can be built: {error}. {EDITED_HINT}"
        ) from error
    try:
        network.load_state_dict(load_file(str(folder / WEIGHTS_FILE)))
    except (RuntimeError, SafetensorError, OSError) as error:
        raise WeightsError(
            f"{where}: {WEIGHTS_FILE} does not fit {INFO_FILE}: {error}. {EDITED_HINT}"
        ) from error
    return network.eval(), info

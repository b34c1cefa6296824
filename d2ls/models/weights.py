"""Weight files: read without unpickling code, and refused, naming the entries, where they do not fit."""

import contextlib
import difflib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from d2ls.errors import WeightsError
from d2ls.models.backbone import Backbone, flat_name

State = Mapping[str, Tensor]
SHOWN = 4


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Reads a state dict from a .safetensors file, or from a .pth/.pt/.bin file (tensors only).

    Raises:
        WeightsError: missing, damaged, or not a state dict.
    """
    try:
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(f"{os.fspath(path)}: cannot be read as weights: {error}") from error
    for wrapper in ("state_dict", "model", "model_ema"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{os.fspath(path)}: holds no state dict (names to tensors)")
    return dict(content)


def load_backbone(backbone: Backbone, path: str | os.PathLike[str], *, by_order: bool = False) -> None:
    """Loads backbone weights from a local file.

    Entries may be named as in timm, as in our feature network, or as by the original authors where timm can translate
    them. Entries that only a classifier uses are ignored.

    Args:
        backbone: takes the weights.
        path: a .safetensors, .pth, .pt or .bin file.
        by_order: match entries by their order in timm's classifier instead of by name, for a file of the same network
            with other names. Refused unless the number of entries, the last part of each name
            (weight, bias, running_mean) and all shapes agree.

    Raises:
        WeightsError: names or shapes differ; the message names the first ones.
    """
    ours, state = backbone.trunk.state_dict(), read_weights(path)
    if by_order:
        state = _by_order(backbone.classifier().state_dict(), state, os.fspath(path))
    fitted = backbone.fit_bands(_renamed(backbone, state))
    refuse_differences(ours, fitted, os.fspath(path))
    backbone.trunk.load_state_dict(fitted)


def _by_order(ours: State, theirs: State, source: str) -> dict[str, Tensor]:
    """Gives the entries the names that ours have at the same place."""
    if source.endswith(".safetensors"):
        raise WeightsError(f"{source}: model.weights_by_order needs a .pth file; .safetensors keeps no order")
    if len(ours) != len(theirs):
        raise WeightsError(
            f"{source}: has {len(theirs)} entries, the network {len(ours)}; model.weights_by_order cannot match them"
        )
    for name, other in zip(ours, theirs, strict=True):
        if name.rpartition(".")[2] != other.rpartition(".")[2]:
            raise WeightsError(
                f"{source}: model.weights_by_order would load {other} as {name}; the file is of another network"
            )
    return dict(zip(ours, theirs.values(), strict=True))


def _renamed(backbone: Backbone, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames the entries as in our feature network, and leaves out those that only the classifier has."""
    classifier = backbone.classifier()
    ours = {backbone.classifier_name(name): name for name in backbone.trunk.state_dict()}
    unused = {flat_name(name) for name in classifier.state_dict()} - ours.keys()
    names = {backbone.classifier_name(name) for name in state}
    if not ours.keys() <= names <= ours.keys() | unused and (timm_filter := _timm_filter(classifier)):
        with contextlib.suppress(KeyError, AttributeError, ValueError, RuntimeError):
            state = timm_filter(state, classifier)
    flat = {name: backbone.classifier_name(name) for name in state}
    return {ours.get(flat[name], name): value for name, value in state.items() if flat[name] not in unused}


def refuse_differences(ours: State, theirs: State, source: str) -> None:
    """Compares names and shapes of two state dicts.

    Raises:
        WeightsError: they differ; the message names the first missing, unknown and misshapen entries.
    """
    missing = [name for name in ours if name not in theirs]
    unknown = [name for name in theirs if name not in ours]
    shapes = [
        f"{name} {tuple(theirs[name].shape)} instead of {tuple(ours[name].shape)}"
        for name in ours
        if name in theirs and theirs[name].shape != ours[name].shape
    ]
    parts = [_listed("missing", missing), _listed("not ours", unknown), _listed("other shape", shapes)]
    if any(parts):
        near = difflib.get_close_matches(unknown[0], missing, n=1) if unknown and missing else []
        hint = f"; perhaps {unknown[0]} is meant to be {near[0]}" if near else ""
        raise WeightsError(f"{source} does not fit the network: {'; '.join(filter(None, parts))}{hint}")


def _listed(what: str, names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{what}: {', '.join(names[:SHOWN])}{more}" if names else ""


def _timm_filter(classifier: nn.Module) -> Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]] | None:
    """Returns the function by which timm renames other authors' checkpoints of this architecture, if it has one."""
    return getattr(sys.modules[type(classifier).__module__], "checkpoint_filter_fn", None)

"""Checkpoints of the published code: names are translated to ours, unused weights are dropped.

The published network takes its ConvNeXt from torchvision; ours comes from timm. The layers are the same.
"""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from d2ls.errors import WeightsError
from d2ls.models.baselines import Baseline
from d2ls.models.build import build_model
from d2ls.models.d2ls import D2LS
from d2ls.models.weights import refuse_differences

_ATTENTION = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}
_BLOCK = {
    "layer_scale": "gamma", "block.0": "conv_dw", "block.2": "norm", "block.3": "mlp.fc1", "block.5": "mlp.fc2"
}  # fmt: skip
_QUERIES = "decoder.token.basic_queries.weight"
_PLAIN = {
    "pe_layer.positional_encoding_gaussian_matrix": "head.position.frequencies",
    "aggregator.weight": "aggregator.mix.weight",
    _QUERIES: "head.static.vectors",
}
_PREFIXES = {
    "decoder.token.token_mlp": "head.dynamic.expand",
    "decoder.feature_modulator.mlp1.proj": "head.modulator.project",
    "decoder.feature_modulator.gmp_branch.1": "head.modulator.peak",
    "decoder.feature_modulator.gap_branch.1": "head.modulator.average",
    "decoder.feature_modulator.mlp2": "head.modulator.weigh",
    "decoder.upsampler.1": "head.decoder.upsampler.norm",
    "decoder.output_hypernetwork_mlps.layers.0": "head.decoder.project.0",
    "decoder.output_hypernetwork_mlps.layers.1": "head.decoder.project.2",
    "decoder.output_hypernetwork_mlps.layers.2": "head.decoder.project.4",
    "decoder.interactor.norm_final_attn": "head.interactor.closing.norm",
}
_LAYER = re.compile(r"decoder\.interactor\.layers\.(\d+)\.(.+)")
_CLOSING = re.compile(r"decoder\.interactor\.final_attn_token_to_image\.(\w+)\.(weight|bias)")
_UNUSED = re.compile(
    r"decoder\.interactor\.layers\.\d+\.(self_attn|mlp|norm1|norm3)\..+"
    r"|decoder\.interactor\.(layers\.\d+\.cross_attn_\w+|final_attn_token_to_image)\.k_proj\.bias"
)


def build_published(
    state_dict: Mapping[str, Tensor], backbone: str
) -> tuple[D2LS | Baseline, tuple[str, ...]]:
    """Builds the network of a checkpoint of the published code, whose sizes follow from the checkpoint.

    Args:
        state_dict: see `load_published`.
        backbone: timm name of the ConvNeXt that it was trained with; its normalisation is the published one.

    Returns:
        The network, and the names that were dropped.

    Raises:
        WeightsError: not a checkpoint of the published network, or one with another backbone.
    """
    names = [name.removeprefix("net.") for name in state_dict]
    queries = next((value for name, value in state_dict.items() if name.endswith(_QUERIES)), None)
    if queries is None:
        raise WeightsError(
            f"no {_QUERIES} among {len(names)} entries ({', '.join(names[:3])} ...): not of the published network"
        )
    num_classes, embed_dim = queries.shape
    stages = 1 + max((int(match[1]) for match in map(_LAYER.fullmatch, names) if match), default=-1)
    model = build_model(backbone=backbone, num_classes=num_classes, embed_dim=embed_dim, stages=stages)
    return model, load_published(model, state_dict)


def load_published(model: nn.Module, state_dict: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Loads a checkpoint of the published code into a network built with the same sizes.

    Args:
        model: a network of `build_model` with a ConvNeXt backbone.
        state_dict: names of the published code to tensors; the prefix `net.` of its trainer is removed.

    Returns:
        The names that were dropped: modules that the published forward pass never uses, and key biases, which do not
        change a softmax.

    Raises:
        WeightsError: other entries are left over or missing, or a shape differs; the message names the first ones.
    """
    state = {name.removeprefix("net."): value for name, value in state_dict.items()}
    dropped = tuple(name for name in state if _UNUSED.fullmatch(name))
    ours = model.state_dict()
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        if name in dropped:
            continue
        target = published_name(name)
        if target is None:
            raise WeightsError(f"checkpoint entry {name!r} is not of the published network")
        fits = target in ours and ours[target].squeeze().shape == value.squeeze().shape
        renamed[target] = value.reshape(ours[target].shape) if fits else value
    refuse_differences(ours, renamed, "published checkpoint")
    model.load_state_dict(renamed)
    return dropped


def published_name(name: str) -> str | None:
    """Returns our name of a published entry, or None where there is none."""
    if name in _PLAIN:
        return _PLAIN[name]
    if name.startswith("backbone.0."):
        inner = convnext_name(name.removeprefix("backbone.0."))
        return inner and f"backbone.trunk.{inner}"
    if match := re.fullmatch(r"linear_c\.(\d)\.proj\.(weight|bias)", name):
        return f"aggregator.projections.{match[1]}.{match[2]}"
    if match := _CLOSING.fullmatch(name):
        part = _ATTENTION.get(match[1])
        return part and f"head.interactor.closing.attention.{part}.{match[2]}"
    if match := _LAYER.fullmatch(name):
        part = _stage_name(match[2])
        return part and f"head.interactor.stages.{match[1]}.{part}"
    for prefix, ours in _PREFIXES.items():
        if name.startswith(f"{prefix}."):
            return ours + name.removeprefix(prefix)
    return None


def convnext_name(name: str) -> str | None:
    """Translates a name inside torchvision's `ConvNeXt.features` to that of timm's feature network."""
    if match := re.fullmatch(r"0\.([01]\.(weight|bias))", name):
        return f"stem_{match[1]}"
    match = re.fullmatch(r"([1-7])\.(\d+)\.(.+)", name)
    if match is None:
        return None
    part, index, rest = int(match[1]), match[2], match[3]
    if part % 2 == 0:
        return f"stages_{part // 2}.downsample.{index}.{rest}"
    for theirs, ours in _BLOCK.items():
        if rest == theirs or rest.startswith(f"{theirs}."):
            return f"stages_{part // 2}.blocks.{index}.{ours}{rest.removeprefix(theirs)}"
    return None


def _stage_name(name: str) -> str | None:
    if match := re.fullmatch(r"cross_attn_(token_to_image|image_to_token)\.(\w+)\.(weight|bias)", name):
        part = _ATTENTION.get(match[2])
        place = "read_pixels.attention" if match[1] == "token_to_image" else "read_dictionary"
        return part and f"{place}.{part}.{match[3]}"
    norms = {"norm2": "read_pixels.norm", "norm4": "read_dictionary.norm"}
    norm, _, rest = name.partition(".")
    return f"{norms[norm]}.{rest}" if norm in norms else None

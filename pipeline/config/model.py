"""Recipe sections `model` and `loss`."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.config.base import Scalar, Section

Architecture = Literal["d2ls", "unet", "unetplusplus", "manet", "linknet", "fpn", "upernet", "segformer"]

NEEDS: dict[str, tuple[str, tuple[Scalar, ...]]] = {
    "model.dictionary": ("model.architecture", ("d2ls",)),
    "model.aggregator": ("model.architecture", ("d2ls",)),
    "model.upsampling_init": ("model.architecture", ("d2ls",)),
    "model.stages": ("model.dictionary", ("dynamic", "static")),
    "model.static_branch": ("model.dictionary", ("dynamic",)),
    "loss.static_weight": ("model.static_branch", (True,)),
    "loss.contrastive": ("model.dictionary", ("dynamic",)),
    "loss.contrastive_weight": ("loss.contrastive", ("ratio", "infonce")),
    "loss.temperature": ("loss.contrastive", ("infonce",)),
}
"""Keys that change nothing unless another key, which must itself count, has one of these values."""


def unmet(key: str, value_of: Callable[[str], Any]) -> tuple[str, tuple[Scalar, ...]] | None:
    """Returns the key that keeps another one from having an effect, and the values it would need.

    Args:
        key: dotted key of a recipe.
        value_of: gives the value of any key.

    Returns:
        None where the key counts.
    """
    if key not in NEEDS:
        return None
    needed, allowed = NEEDS[key]
    return unmet(needed, value_of) or (None if value_of(needed) in allowed else NEEDS[key])


class ModelConfig(Section):
    """The network."""

    architecture: Architecture = "d2ls"
    """D2LS, or a network to compare it with, from segmentation_models_pytorch (the extra `baselines`): the same
    backbone, loop, losses and evaluation; no dictionary, so what is about one has no effect."""
    backbone: str = "convnext_base.fb_in1k"
    """Name of a timm backbone with four maps at strides 4, 8, 16, 32."""
    pretrained: bool = True
    """Start from timm's weights of that name (fetched on first use)."""
    weights: str | None = None
    """Start the backbone from this local file (safetensors or pth) instead."""
    weights_by_order: bool = False
    """Match the entries of `weights` (pth) by their order, not their names: a file of the same network by another
    author. The number of entries, the last part of each name and all shapes must agree."""
    init: str | None = None
    """Start the whole network from a registered model (`models:/name@alias`) or a checkpoint folder."""
    stages: Annotated[int, Field(ge=0, le=6)] = 3
    """Dictionary stages L; 0 keeps the closing attention alone."""
    dictionary: Literal["dynamic", "static", "none"] = "dynamic"
    """`dynamic` as published; `static`: learned class vectors alone; `none`: a plain 1x1 head."""
    static_branch: bool = True
    """Auxiliary branch of the static dictionary, in training only."""
    aggregator: bool = True
    """Fuse all four maps; without it the deepest one alone is used."""
    freeze_backbone: bool = False
    """Train the head alone."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Stochastic depth rate of the backbone."""
    upsampling_init: Literal["published", "icnr"] = "published"
    """Initial weights before the pixel shuffles of D2LS: `published`, independent; `icnr`: the 4 x 4 sub-pixels of a
    pixel start equal. Without effect on weights that `init` brings."""


class LossConfig(Section):
    """The training loss, a weighted sum of named terms."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the target that the cross entropy spreads over all classes."""
    dice_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the Dice loss; 0 turns it off."""
    dice_smooth: Annotated[float, Field(gt=0)] = 0.05
    """Added to numerator and denominator of Dice."""
    static_weight: Annotated[float, Field(ge=0)] = 0.4
    """Weight of the cross entropy of the static branch."""
    contrastive: Literal["none", "ratio", "infonce"] = "ratio"
    """`ratio` as published; `infonce`: with a temperature, this project's own form."""
    contrastive_weight: Annotated[float, Field(ge=0)] | None = None
    """Weight of the contrastive term; unset: 1.0 for `ratio`, 0.1 for `infonce`."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 0.1
    """Temperature of `infonce`; without effect in the other forms."""
    ignored_pixels: Literal["exclude", "include"] = "exclude"
    """`include` divides the cross entropy by all pixels, ignored ones too, as the published code does."""

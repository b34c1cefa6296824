"""Recipe sections `model` and `loss`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pipeline.config.base import Scalar, Section

Architecture = Literal[
    "d2ls", "unetformer", "unet", "unetplusplus", "manet", "linknet", "fpn", "upernet", "segformer"
]


@dataclass(frozen=True)
class Above:
    """The numbers above a limit."""

    limit: float

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and value > self.limit

    def __iter__(self) -> Iterator[str]:
        yield f"more than {self.limit:g}"


Allowed = tuple[Scalar, ...] | Above

NEEDS: dict[str, tuple[str, Allowed]] = {
    "model.dictionary": ("model.architecture", ("d2ls",)),
    "model.aggregator": ("model.architecture", ("d2ls",)),
    "model.upsampling_init": ("model.architecture", ("d2ls",)),
    "model.stages": ("model.dictionary", ("dynamic", "static")),
    "model.static_branch": ("model.dictionary", ("dynamic",)),
    "loss.effective_beta": ("loss.class_weights", ("effective",)),
    "loss.boundary_px": ("loss.boundary_factor", Above(1)),
    "loss.focal_gamma": ("loss.focal_weight", Above(0)),
    "loss.dice_smooth": ("loss.dice_weight", Above(0)),
    "loss.tversky_alpha": ("loss.tversky_weight", Above(0)),
    "loss.tversky_beta": ("loss.tversky_weight", Above(0)),
    "loss.static_weight": ("model.static_branch", (True,)),
    "loss.contrastive": ("model.dictionary", ("dynamic",)),
    "loss.contrastive_weight": ("loss.contrastive", ("ratio", "infonce")),
    "loss.temperature": ("loss.contrastive", ("infonce",)),
    "loader.skip_limit": ("loader.bad_samples", ("skip",)),
    "train.non_finite_limit": ("train.non_finite", ("skip",)),
    "train.min_delta": ("train.patience", Above(0)),
    "train.schedule.final_lr": ("train.schedule.name", ("cosine", "polynomial")),
    "sweep.grace_epochs": ("sweep.scheduler", ("asha",)),
    "sweep.reduction_factor": ("sweep.scheduler", ("asha",)),
    "data.codec.quality": ("data.codec.name", ("jpg",)),
    "data.codec.level": ("data.codec.name", ("png", "webp", "tif")),
    "data.codec.compression": ("data.codec.name", ("tif",)),
}
"""Keys that have no effect unless another key, which must itself have an effect, has one of these values."""


def unmet(key: str, value_of: Callable[[str], Any]) -> tuple[str, Allowed] | None:
    """Returns the key that keeps another one from having an effect, and the values it would need.

    Args:
        key: dotted key of a recipe.
        value_of: gives the value of any key.

    Returns:
        None if the key has an effect.
    """
    if key not in NEEDS:
        return None
    needed, allowed = NEEDS[key]
    return unmet(needed, value_of) or (None if value_of(needed) in allowed else NEEDS[key])


class ModelConfig(Section):
    """The network."""

    architecture: Architecture = "d2ls"
    """D2LS, or a network to compare it with: UNetFormer, or one of segmentation_models_pytorch (the extra `baselines`).
    All have the same backbone, loop, losses and evaluation. The others have no dictionary, so its keys have no
    effect."""
    backbone: str = "convnext_base.fb_in1k"
    """Name of a timm backbone with four maps at strides 4, 8, 16, 32."""
    pretrained: bool = True
    """Start from timm's weights of that name (fetched on first use)."""
    weights: str | None = None
    """Start the backbone from this local file (safetensors or pth) instead."""
    weights_by_order: bool = False
    """Match the entries of `weights` (pth) by order instead of by name, for a file of the same network from other code.
    The number of entries, the last part of each name and all shapes must agree."""
    init: str | None = None
    """Start the whole network from a registered model (`models:/name@alias`) or a checkpoint folder."""
    stages: Annotated[int, Field(ge=0, le=6)] = 3
    """Dictionary stages L; 0 keeps only the closing attention."""
    dictionary: Literal["dynamic", "static", "none"] = "dynamic"
    """`dynamic` as published; `static`: only learned class vectors; `none`: a plain 1x1 head."""
    static_branch: bool = True
    """Auxiliary branch of the static dictionary, in training only."""
    aggregator: bool = True
    """Fuse all four maps; without it only the deepest one is used."""
    freeze_backbone: bool = False
    """Train only the head."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Stochastic depth rate of the backbone."""
    upsampling_init: Literal["icnr", "published"] = "icnr"
    """Initial weights before the pixel shuffles of D2LS. `icnr`: the 4 x 4 sub-pixels of a pixel start equal, which
    avoids dotted maps; `published`: independent. Without effect on weights loaded by `init`."""


def _by_name_or_word(value: Any) -> Any:
    if isinstance(value, dict) or value in ("none", "inverse", "effective"):
        return value
    raise ValueError("allowed are none, inverse, effective, or a mapping of class names to weights")


ClassWeights = Annotated[
    Literal["none", "inverse", "effective"] | dict[str, Annotated[float, Field(ge=0)]],
    BeforeValidator(_by_name_or_word),
]


class LossConfig(Section):
    """The training loss, a weighted sum of named terms; a weight of 0 turns a term off."""

    cross_entropy_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the cross entropy."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Label smoothing: share of the target that the cross entropy spreads over all classes."""
    class_weights: ClassWeights = "none"
    """Weights of the classes in cross entropy and focal: by name, e.g. `{road: 3}` (1 for the others), or from the
    pixels of the training split: `inverse` frequency, or `effective` number of pixels."""
    effective_beta: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Beta of the effective number, with `class_weights: effective`: the nearer to 1, the nearer to `inverse`. Unset:
    1 - 1 / (mean number of pixels per class)."""
    boundary_factor: Annotated[float, Field(ge=1)] = 1.0
    """Weight of pixels near a class boundary in cross entropy and focal; 1: that of other pixels."""
    boundary_px: Annotated[int, Field(ge=1, le=255)] = 3
    """With `boundary_factor`: a pixel is near a boundary if another class lies within this number of rows and
    columns."""
    focal_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the focal loss, in place of the cross entropy or beside it."""
    focal_gamma: Annotated[float, Field(ge=0, le=10)] = 2.0
    """Exponent of the focal loss: the higher, the less pixels count that are already predicted well."""
    dice_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the Dice loss; 0 turns it off."""
    dice_smooth: Annotated[float, Field(gt=0)] = 0.05
    """Added to numerator and denominator of Dice."""
    tversky_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the Tversky loss: Dice per image, with separate weights for false positives and false negatives."""
    tversky_alpha: Annotated[float, Field(gt=0)] = 0.3
    """Weight of false positives in Tversky."""
    tversky_beta: Annotated[float, Field(gt=0)] = 0.7
    """Weight of false negatives in Tversky."""
    lovasz_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the Lovász-softmax loss, a surrogate of IoU, per image."""
    static_weight: Annotated[float, Field(ge=0)] = 0.4
    """Weight of the cross entropy of the static branch."""
    contrastive: Literal["none", "ratio", "infonce"] = "ratio"
    """Contrastive term. `ratio`: as published; `infonce`: this project's own form, with a temperature."""
    contrastive_weight: Annotated[float, Field(ge=0)] | None = None
    """Weight of the contrastive term; unset: 1.0 for `ratio`, 0.1 for `infonce`."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 0.1
    """Temperature of `infonce`; no effect in the other forms."""
    ignored_pixels: Literal["exclude", "include"] = "exclude"
    """`include` divides the cross entropy by all pixels, ignored ones too, as the published code does."""

    @model_validator(mode="after")
    def _something_is_minimised(self) -> Self:
        terms = ("cross_entropy", "focal", "dice", "tversky", "lovasz")
        if not any(getattr(self, f"{term}_weight") for term in terms):
            raise ValueError(f"one of {', '.join(f'{term}_weight' for term in terms)} must be above 0")
        return self

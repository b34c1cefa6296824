"""Networks to compare D2LS with: UNetFormer, and decoders of segmentation_models_pytorch, behind the same backbones.

UNetFormer is this project's own code. The library is an optional extra, imported only where one of its networks is
built. None of its weights are loaded. The backbone is timm's, with the weights that D2LS would start from, so that a
comparison changes only the head.
"""

import importlib.util
from typing import Any

from torch import Tensor, nn

from d2ls.errors import ConfigError
from d2ls.models.backbone import Backbone
from d2ls.models.d2ls import D2LSOutput, crop, pad
from d2ls.models.normalization import Normalization
from d2ls.models.unetformer import UNetFormerDecoder, UNetFormerHead

LIBRARY_BASELINES = ("unet", "unetplusplus", "manet", "linknet", "fpn", "upernet", "segformer")
"""Decoders that take a plain pyramid of maps; the library's others need a dilated encoder, or one of their own."""

BASELINES = ("unetformer", *LIBRARY_BASELINES)
"""All networks beside D2LS."""

LIBRARY = "segmentation_models_pytorch"
DEEPEST_STRIDE = 32
WIDTHS = "d2ls-widths"
"""Name by which the library finds the encoder that only describes the maps."""


class Baseline(nn.Module):
    """An encoder-decoder network with the interface of `D2LS`.

    Args:
        backbone: maps of the image, down to stride 32.
        decoder: from the image and its maps, shallowest first, to pixel features.
        head: from pixel features to logits.
        normalization: turns raw pixels into what the backbone expects.
        config: plain values from which `build_model` makes the same architecture.
    """

    def __init__(
        self,
        backbone: Backbone,
        decoder: nn.Module,
        head: nn.Module,
        *,
        normalization: Normalization,
        config: dict[str, Any],
    ) -> None:
        super().__init__()
        self.backbone, self.decoder, self.head = backbone, decoder, head
        self.normalization = normalization
        self.config = config

    def forward(self, images: Tensor, auxiliary: bool | None = None) -> D2LSOutput:
        """Segments images.

        Args:
            images: raw pixels, B bands H W, uint8, uint16 or float. H and W are free. The normalised images are
                padded with zeros at the lower and right edge to a multiple of 32; the logits are cropped.
            auxiliary: has no effect, as there is no second branch.

        Returns:
            The output, logits B K H W; the other fields are empty, as there is no dictionary.
        """
        height, width = images.shape[-2:]
        padded = pad(self.normalization(images), DEEPEST_STRIDE)
        maps = self.backbone(padded, from_stride_2=True)
        if 2 not in self.backbone.strides:  # these decoders expect a map there, if only one without channels
            half = [side // 2 for side in padded.shape[-2:]]
            maps = [padded.new_empty(padded.shape[0], 0, *half), *maps]
        return crop(D2LSOutput(self.head(self.decoder([padded, *maps]))), height, width)


def build_baseline(
    architecture: str,
    backbone: Backbone,
    num_classes: int,
    *,
    normalization: Normalization,
    config: dict[str, Any],
) -> Baseline:
    """Builds a baseline around a backbone.

    Args:
        architecture: one of `BASELINES`.
        backbone: the encoder.
        num_classes: K.
        normalization: of the raw pixels.
        config: plain values from which `build_model` makes the same network.

    Raises:
        ConfigError: an unknown architecture, the library is missing, or the decoder does not go with this backbone.
    """
    check_library(architecture)
    parts: tuple[nn.Module, nn.Module]
    if architecture == "unetformer":
        parts = UNetFormerDecoder(backbone.channels), UNetFormerHead(num_classes)
    else:
        parts = _of_the_library(architecture, backbone, num_classes)
    return Baseline(backbone, *parts, normalization=normalization, config=config)


def _of_the_library(architecture: str, backbone: Backbone, num_classes: int) -> tuple[nn.Module, nn.Module]:
    """Builds decoder and head for the maps of a backbone."""
    import segmentation_models_pytorch as smp

    at_stride_2 = backbone.width_at(2) if 2 in backbone.strides else 0
    widths = [backbone.bands, at_stride_2, *backbone.channels]
    smp.encoders.encoders[WIDTHS] = {"encoder": _Widths, "params": {"out_channels": widths}}
    try:
        whole = smp.create_model(architecture, WIDTHS, None, backbone.bands, num_classes)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"architecture {architecture!r} cannot be built behind backbone {backbone.name!r}: {error}"
        ) from error
    return whole.decoder, whole.segmentation_head


class _Widths(nn.Module):
    """Stands in for an encoder of the library while a decoder is built: the channels of the maps, and no weights."""

    output_stride = DEEPEST_STRIDE

    def __init__(self, out_channels: list[int], **_: Any) -> None:
        super().__init__()
        self.out_channels = out_channels

    def set_in_channels(self, *_: Any, **__: Any) -> None:
        """Does nothing: `out_channels` begins with the bands already."""


def check_library(architecture: str) -> None:
    """Refuses an unknown architecture, and one of the library where that is missing.

    Raises:
        ConfigError: names what is allowed, or what to install.
    """
    if architecture not in BASELINES:
        raise ConfigError(f"architecture is {architecture!r}; allowed are d2ls, {', '.join(BASELINES)}")
    if architecture in LIBRARY_BASELINES and importlib.util.find_spec(LIBRARY) is None:
        raise ConfigError(
            f"architecture {architecture!r} is a network of {LIBRARY}, which is not installed. Install the extra "
            "`baselines`: pip install 'd2ls-pipeline[baselines]', or '.[baselines]' in a checkout"
        )

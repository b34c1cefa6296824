"""The encoder: any timm backbone that gives four maps at strides 4, 8, 16 and 32, or a plain vision transformer."""

import difflib
import functools
import inspect
import logging
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any, Self

import huggingface_hub
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2ls.errors import ConfigError, WeightsError
from d2ls.models import feature_pyramid
from d2ls.models.feature_pyramid import SimpleFeaturePyramid

STRIDES = (4, 8, 16, 32)
RGB = (0, 1, 2)

HUB_SECONDS = 10.0
"""Seconds in which the hub has to answer before its weights are asked for."""

_log = logging.getLogger(__name__)


class Backbone(nn.Module):
    """Wraps a timm backbone: four maps, channels first, channels and strides as timm describes them.

    A plain vision transformer (timm's `VisionTransformer` and `Eva`: DINOv2, DINOv3, EVA-02, DeiT, CLIP) has one map
    instead. Its last one, behind its closing norm, goes through a `SimpleFeaturePyramid`, which starts from random
    weights and is trained like the head. Some, such as EVA-02, have that norm behind their average pooling; then the
    map is not normalised. Images are padded with zeros to multiples of the patch, and timm
    interpolates position embeddings to that size. A map at another stride than 16 is resized bilinearly to stride 16.

    Args:
        name: timm's name, with or without a weight tag (`convnext_base.fb_in1k`).
        bands: channels of the input image.
        rgb: which of them are red, green and blue; see `fit_bands`.
        pretrained: take timm's weights; this may download.
        drop_path: stochastic depth rate, for the architectures that have it.
        freeze: no gradient to timm's network, and evaluation mode always.

    Attributes:
        channels: channels of the four maps, shallowest first.
        strides: strides of all maps that timm gives, shallowest first, among them the four.
        multiple: number that height and width of the images must be a multiple of.

    Raises:
        ConfigError: unknown name (near ones are listed), or no four maps at these strides.
    """

    def __init__(
        self,
        name: str,
        *,
        bands: int = 3,
        rgb: Sequence[int] = RGB,
        pretrained: bool = False,
        drop_path: float = 0.0,
        freeze: bool = False,
    ) -> None:
        super().__init__()
        self.name, self.bands, self.rgb = name, bands, tuple(rgb)
        self.patch = _patch(name)
        make = functools.partial(_create, name, drop_path=drop_path, plain=self.patch is not None)
        self.trunk = make(bands=bands, pretrained=pretrained and bands == 3)
        if pretrained and bands != 3:
            self._load_three_bands(make(bands=3, pretrained=True).state_dict())
        self.neck: SimpleFeaturePyramid | None = None
        self.channels_last = False
        if self.patch is None:
            self._describe_maps()
        else:
            self.neck = SimpleFeaturePyramid(self.trunk.embed_dim)
            self.strides, self.channels, self.multiple = STRIDES, self.neck.channels, STRIDES[-1]
        self.levels = tuple(self.strides.index(stride) for stride in STRIDES)
        self.frozen = freeze
        if freeze:
            self.trunk.requires_grad_(False).eval()

    def _load_three_bands(self, weights: dict[str, Tensor]) -> None:
        ours, fitted = self.trunk.state_dict(), self.fit_bands(weights)
        for name, value in fitted.items():
            if value.shape != ours[name].shape:
                raise ConfigError(
                    f"backbone {self.name!r}: its pretrained weights cannot be fitted to {self.bands} bands ({name}); "
                    "use another backbone, or model.pretrained=false"
                )
        self.trunk.load_state_dict(fitted)

    def fit_bands(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Fits the convolutions that read a three-band image, named as in the trunk, to the bands of this backbone."""
        ours = self.trunk.state_dict()
        return {
            name: fit_bands(value, self.bands, self.rgb)
            if name in ours and value.dim() == 4 and value.shape[1] == 3 and ours[name].shape[1] == self.bands
            else value
            for name, value in weights.items()
        }

    def _describe_maps(self) -> None:
        """Takes strides and channels from timm's description of the trunk."""
        self.strides = tuple(self.trunk.feature_info.reduction())
        if not set(STRIDES) <= set(self.strides):
            raise ConfigError(
                f"backbone {self.name!r} gives maps at strides {list(self.strides)}; {list(STRIDES)} are needed, or a "
                "transformer of timm's classes VisionTransformer and Eva"
            )
        self.channels = tuple(map(self.width_at, STRIDES))
        self.channels_last = "NHWC" in str(getattr(self.trunk, "output_fmt", ""))
        self.multiple = STRIDES[0]

    def forward(self, images: Tensor, *, from_stride_2: bool = False) -> list[Tensor]:
        """Computes the maps.

        Args:
            images: B bands H W, float, normalised; H and W multiples of `multiple`.
            from_stride_2: begin with the map at stride 2, where there is one.

        Returns:
            F1..F4, B C_i H_i W_i, strides 4, 8, 16, 32, shallowest first.
        """
        maps = self._maps(images)
        if from_stride_2 and 2 in self.strides:
            return [maps[self.strides.index(2)], *(maps[level] for level in self.levels)]
        return [maps[level] for level in self.levels]

    def width_at(self, stride: int) -> int:
        """Returns the channels of timm's map at one of `strides`."""
        width: int = self.trunk.feature_info.channels()[self.strides.index(stride)]
        return width

    def classifier(self) -> Any:
        """Returns the classifier network that the trunk is a part of, without memory for its weights."""
        return _described(self.name, self.bands)

    def classifier_name(self, name: str) -> str:
        """Returns the flat name (`flat_name`) in the classifier of an entry of the trunk.

        Where timm cannot take the stages out of a network, the trunk holds the whole of it as `model` or `body`.
        """
        kind = type(self.classifier())
        inside = (child for child, module in self.trunk.named_children() if isinstance(module, kind))
        return flat_name(name.removeprefix(f"{next(inside, '')}."))

    def _maps(self, images: Tensor) -> list[Tensor]:
        if self.neck is not None and self.patch is not None:
            return self.neck(_at_stride_16(self._last_map(images, self.patch), self.patch, images))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            maps = self.trunk(images)
        return [features.permute(0, 3, 1, 2) for features in maps] if self.channels_last else list(maps)

    def _last_map(self, images: Tensor, patch: int) -> Tensor:
        """Computes the closing map of a transformer, B C ceil(H/patch) ceil(W/patch)."""
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % patch, 0, -height % patch))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            (features,) = self.trunk.forward_intermediates(
                padded, indices=1, norm=True, intermediates_only=True
            )
        return features

    def train(self, mode: bool = True) -> Self:
        """Sets the mode; timm's network stays in evaluation mode where it is frozen."""
        super().train(mode)
        self.trunk.train(mode and not self.frozen)
        return self


def _at_stride_16(features: Tensor, patch: int, images: Tensor) -> Tensor:
    """Resizes a map of patches, which may reach beyond the images, to one value for each 16 x 16 pixels."""
    if patch == feature_pyramid.STRIDE:
        return features
    height, width = (side // feature_pyramid.STRIDE for side in images.shape[-2:])
    resized = F.interpolate(features, scale_factor=patch / feature_pyramid.STRIDE, mode="bilinear")
    return resized[..., :height, :width]


def fit_bands(weight: Tensor, bands: int, rgb: Sequence[int] = RGB) -> Tensor:
    """Fits the weights of a convolution that reads three-band images to other bands.

    With more than three bands, red, green and blue keep their filters, and the other bands share the mean of the
    three filters equally. An image with zeros in the other bands gives the same output as before; equal bands give at
    most 4/3 of it. With fewer bands, or without red, green and blue, each band gets the sum of the three filters,
    divided by the number of bands. Equal bands then give the same output as a grey image before.

    Args:
        weight: O 3 h w.
        bands: n, number of bands.
        rgb: places of red, green and blue among them; empty where one is missing.

    Returns:
        O n h w.
    """
    if bands == 3:
        return weight
    if bands < 3 or not rgb:
        return (weight.sum(1, keepdim=True) / bands).repeat(1, bands, 1, 1)
    fitted = (weight.mean(1, keepdim=True) / (bands - 3)).repeat(1, bands, 1, 1)
    fitted[:, list(rgb)] = weight
    return fitted


def rgb_places(names: Sequence[str]) -> tuple[int, ...]:
    """Returns the places of red, green and blue among named bands; empty unless all three are there."""
    lower = [name.lower() for name in names]
    colours = ("red", "green", "blue")
    return tuple(lower.index(colour) for colour in colours) if set(colours) <= set(lower) else ()


def flat_name(name: str) -> str:
    """Returns one spelling for `stages.0.blocks` (classifier) and `stages_0.blocks` (timm's feature network)."""
    return name.replace(".", "_")


def check_hub(name: str) -> None:
    """Checks that the pretrained weights of a backbone are cached, or that the hub which has them can be reached.

    Raises:
        WeightsError: neither; says what to do.
    """
    _weights_without_hub(name)


def _create(name: str, *, bands: int, pretrained: bool, drop_path: float, plain: bool) -> Any:
    architecture = name.split(".")[0]
    options: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    if plain:
        options |= {"dynamic_img_size": True, "num_classes": 0}
    else:
        options["features_only"] = True
        if _accepts(architecture, "strict_img_size"):
            options["strict_img_size"] = False
    if pretrained and (cached := _weights_without_hub(name)):
        options["pretrained_cfg_overlay"] = {"file": cached}
    try:
        network: Any = timm.create_model(name, pretrained=pretrained, in_chans=bands, **options)
    except (RuntimeError, AssertionError, AttributeError, TypeError) as error:
        tags = ", ".join(timm.list_pretrained(f"{architecture}.*")[:8]) or "none"
        raise ConfigError(
            f"backbone {name!r} cannot be built: {error}. Weight tags of timm: {tags}"
        ) from error
    except OSError as error:  # the hub's errors are all of this kind
        raise _not_fetched(name, str(error).splitlines()[0]) from error
    if plain:  # what only a classifier uses would have no gradient
        network.prune_intermediate_layers(1, prune_norm=False, prune_head=True)
    return network


def _weights_without_hub(name: str) -> str | None:
    """Returns the cached weights where the hub cannot be reached; None where timm is to ask it.

    The hub's library tries for about a minute before it gives up or takes its cache.

    Raises:
        WeightsError: the hub cannot be reached, and nothing is cached.
    """
    settings = timm.get_pretrained_cfg(name)
    if settings is None or not settings.hf_hub_id or huggingface_hub.constants.HF_HUB_OFFLINE:
        return None
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    _log.info("asking %s for the pretrained weights of %s", endpoint, name)
    try:
        request = urllib.request.Request(endpoint, method="HEAD")  # noqa: S310 (the user's own endpoint)
        urllib.request.urlopen(request, timeout=HUB_SECONDS).close()  # noqa: S310
    except urllib.error.HTTPError:
        return None  # it answers
    except OSError as error:
        for file in ("model.safetensors", "pytorch_model.bin"):
            cached = huggingface_hub.try_to_load_from_cache(settings.hf_hub_id, file)
            if isinstance(cached, str):
                _log.info("%s cannot be reached (%s); its cached weights are taken", endpoint, error)
                return cached
        raise _not_fetched(name, f"{endpoint} cannot be reached: {error}") from error
    return None


def _not_fetched(name: str, reason: str) -> WeightsError:
    return WeightsError(
        f"backbone {name!r}: its pretrained weights could not be fetched ({reason}). Connect once, name a file in "
        "model.weights with model.pretrained=false, or train from scratch with model.pretrained=false"
    )


def _patch(name: str) -> int | None:
    """Returns the patch size of a plain transformer, None for any other network.

    Raises:
        ConfigError: timm has no such network.
    """
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=5, cutoff=0.5)
        raise ConfigError(
            f"timm has no backbone {architecture!r}; similar names: {', '.join(near) or 'none'}"
        )
    network = _described(architecture)
    strides = {
        entry["reduction"] for entry in getattr(network, "feature_info", ()) if isinstance(entry, dict)
    }
    any_size = "dynamic_img_size" in inspect.signature(type(network)).parameters
    return strides.pop() if len(strides) == 1 and any_size else None


@functools.lru_cache(maxsize=8)
def _described(name: str, bands: int = 3) -> Any:
    """Returns timm's classifier of this name without memory for its weights; not to be changed."""
    with torch.device("meta"):
        return timm.create_model(name, in_chans=bands)


def _accepts(architecture: str, option: str) -> bool:
    """Returns whether a class in timm's module of this architecture takes the option."""
    module = sys.modules[timm.model_entrypoint(architecture).__module__]
    classes: Sequence[type] = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if member.__module__ == module.__name__
    ]
    return any(option in inspect.signature(member).parameters for member in classes)

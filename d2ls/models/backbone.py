"""The encoder: any timm backbone that gives four maps at strides 4, 8, 16 and 32."""

import difflib
import inspect
import sys
from collections.abc import Sequence
from typing import Any, Self

import timm
import torch
from torch import Tensor, nn

from d2ls.errors import ConfigError, WeightsError

STRIDES = (4, 8, 16, 32)


class Backbone(nn.Module):
    """Wraps a timm backbone: four maps, channels first, channels and strides as timm describes them.

    Args:
        name: timm's name, with or without a weight tag (`convnext_base.fb_in1k`).
        bands: channels of the input image.
        pretrained: take timm's weights; this may download.
        drop_path: stochastic depth rate, for the architectures that have it.
        freeze: no gradient, and evaluation mode always.

    Attributes:
        channels: channels of the four maps, shallowest first.
        strides: strides of all maps of the trunk, shallowest first, among them the four.

    Raises:
        ConfigError: unknown name (near ones are listed), or no four maps at these strides.
    """

    def __init__(
        self,
        name: str,
        *,
        bands: int = 3,
        pretrained: bool = False,
        drop_path: float = 0.0,
        freeze: bool = False,
    ) -> None:
        super().__init__()
        self.name, self.bands = name, bands
        self.trunk = _create(name, bands=bands, pretrained=pretrained, drop_path=drop_path)
        self.strides = tuple(self.trunk.feature_info.reduction())
        if not set(STRIDES) <= set(self.strides):
            raise ConfigError(
                f"backbone {name!r} gives maps at strides {list(self.strides)}; {list(STRIDES)} are needed"
            )
        self.levels = tuple(self.strides.index(stride) for stride in STRIDES)
        self.channels = tuple(self.trunk.feature_info.channels()[level] for level in self.levels)
        self.channels_last = "NHWC" in str(getattr(self.trunk, "output_fmt", ""))
        self.frozen = freeze
        if freeze:
            self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Computes the maps.

        Args:
            images: B bands H W, float, normalised; H and W multiples of 4.

        Returns:
            F1..F4, B C_i H_i W_i, strides 4, 8, 16, 32, shallowest first.
        """
        maps = self._maps(images)
        return [maps[level] for level in self.levels]

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Computes the four maps, and before them the one at stride 2 where the trunk has it."""
        maps = self._maps(images)
        return [
            features for features, stride in zip(maps, self.strides, strict=True) if stride in (2, *STRIDES)
        ]

    def classifier(self) -> Any:
        """Returns the classifier network that the trunk is a part of, without memory for its weights."""
        with torch.device("meta"):
            return timm.create_model(self.name, in_chans=self.bands)

    def _maps(self, images: Tensor) -> list[Tensor]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            maps = self.trunk(images)
        return [features.permute(0, 3, 1, 2) for features in maps] if self.channels_last else list(maps)

    def train(self, mode: bool = True) -> Self:
        """Sets the mode; a frozen backbone stays in evaluation mode."""
        return super().train(mode and not self.frozen)


def flat_name(name: str) -> str:
    """Returns one spelling for `stages.0.blocks` (classifier) and `stages_0.blocks` (timm's feature network)."""
    return name.replace(".", "_")


def _create(name: str, *, bands: int, pretrained: bool, drop_path: float) -> Any:
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=5, cutoff=0.5)
        raise ConfigError(
            f"timm has no backbone {architecture!r}; similar names: {', '.join(near) or 'none'}"
        )
    options: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    if _accepts(architecture, "strict_img_size"):
        options["strict_img_size"] = False
    try:
        return timm.create_model(name, pretrained=pretrained, features_only=True, in_chans=bands, **options)
    except (RuntimeError, AssertionError, AttributeError, TypeError) as error:
        tags = ", ".join(timm.list_pretrained(f"{architecture}.*")[:8]) or "none"
        raise ConfigError(
            f"backbone {name!r} cannot be built: {error}. Weight tags of timm: {tags}"
        ) from error
    except OSError as error:  # the hub's errors are all of this kind
        raise WeightsError(
            f"backbone {name!r}: its pretrained weights could not be fetched ({str(error).splitlines()[0]}). Connect "
            "once, name a file in model.weights with model.pretrained=false, or train from scratch with "
            "model.pretrained=false"
        ) from error


def _accepts(architecture: str, option: str) -> bool:
    """Returns whether a class in timm's module of this architecture takes the option."""
    module = sys.modules[timm.model_entrypoint(architecture).__module__]
    classes: Sequence[type] = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if member.__module__ == module.__name__
    ]
    return any(option in inspect.signature(member).parameters for member in classes)

"""The optimizer: AdamW, optionally inside Lookahead, with learning rates by depth."""

from typing import Any

import torch
from timm.models import group_parameters
from torch import Tensor, nn

from d2ls.errors import ConfigError
from d2ls.models.backbone import flat_name

LOOKAHEAD_STEPS, LOOKAHEAD_SHARE = 5, 0.5


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that leaves out a step on the device where a loss or gradient is not finite, without waiting for the host.

    Before `step`, set `found_inf` to one float32 on the device: 1 leaves weights, moments and step counts as they are.
    This is the attribute by which `torch.amp.GradScaler` drives fused optimizers. Lookahead leaves out the same
    steps. At step 6, 11, ... of those that are made, the weights go back half of the way to where they were five steps
    before.

    Args:
        params: parameter groups.
        lookahead: whether to wrap the steps in Lookahead (Zhang et al. 2019), as the published recipes do.
        **options: of AdamW.
    """

    found_inf: Tensor | None = None

    def __init__(self, params: Any, *, lookahead: bool = False, **options: Any) -> None:
        super().__init__(params, fused=True, **options)
        self.lookahead = lookahead
        for group in self.param_groups:
            group["steps"] = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Makes a step, or leaves it out where `found_inf` is 1; the host then calls `uncount_step` later."""
        loss = super().step(closure)
        for group in self.param_groups:
            group["steps"] += 1
            if self.lookahead and group["steps"] % LOOKAHEAD_STEPS == 1:
                self._look_ahead(group)
        return loss

    def uncount_step(self) -> None:
        """Takes the latest step out of the count: it was left out."""
        for group in self.param_groups:
            group["steps"] -= 1

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state, in the memory layout of the parameters: fused steps need it, and a file does not keep it."""
        groups = [{**group, "fused": True} for group in state_dict["param_groups"]]
        super().load_state_dict({**state_dict, "param_groups": groups})
        for parameter, values in self.state.items():
            for name, value in values.items():
                if value.shape == parameter.shape and value.stride() != parameter.stride():
                    values[name] = torch.empty_like(parameter).copy_(value)

    def _look_ahead(self, group: dict[str, Any]) -> None:
        for parameter in group["params"]:
            state = self.state[parameter]
            if not state:  # never had a gradient
                continue
            if group["steps"] == 1 or "slow" not in state:  # it may get its first gradient later
                state["slow"] = parameter.detach().clone()
                continue
            made: Any = 1.0 if self.found_inf is None else 1 - self.found_inf
            state["slow"].lerp_(parameter, made * LOOKAHEAD_SHARE)
            parameter.lerp_(state["slow"], made)


def build_optimizer(
    network: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.01,
    backbone_lr_factor: float = 1.0,
    layer_decay: float = 1.0,
    lookahead: bool = False,
) -> GuardedAdamW:
    """Builds AdamW over all trainable parameters.

    Args:
        network: has a `.backbone` where rates differ by depth.
        lr: rate of the head; a group's own rate is `lr` times its `lr_scale`.
        weight_decay: decoupled, on every parameter, as in the published recipes.
        backbone_lr_factor: rate of the backbone's last layer, as a share of `lr`.
        layer_decay: factor from one backbone layer to the next shallower one; 1 is off.
        lookahead: wrap the steps in Lookahead (k 5, alpha 0.5), as the published recipes do.
    """
    groups = parameter_groups(network, backbone_lr_factor, layer_decay)
    for group in groups:
        group["lr"] = lr * group["lr_scale"]
    return GuardedAdamW(groups, lr=lr, weight_decay=weight_decay, lookahead=lookahead)


def parameter_groups(
    network: nn.Module, backbone_lr_factor: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Groups trainable parameters by the share of the learning rate they get (`lr_scale`), largest first."""
    depths = backbone_depths(network) if layer_decay < 1 else {}
    deepest = max(depths.values(), default=0)
    by_scale: dict[float, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = 1.0
        if name.startswith("backbone.trunk."):
            scale = backbone_lr_factor * layer_decay ** (deepest - depths.get(name, deepest))
        by_scale.setdefault(scale, []).append(parameter)
    return [{"params": by_scale[scale], "lr_scale": scale} for scale in sorted(by_scale, reverse=True)]


def backbone_depths(network: nn.Module) -> dict[str, int]:
    """Returns the layer number (0 is the stem) of every backbone parameter, as timm itself counts layers.

    Raises:
        ConfigError: timm describes no layers of this architecture.
    """
    backbone: Any = network.backbone
    classifier = backbone.classifier()
    if not hasattr(classifier, "group_matcher"):
        raise ConfigError(
            f"train.optimizer.layer_decay: timm describes no layers of {backbone.name}; set it to 1"
        )
    layers = group_parameters(classifier, classifier.group_matcher(coarse=False), reverse=True)
    by_flat_name = {flat_name(name): int(layer) for name, layer in layers.items()}
    names = {name: f"backbone.trunk.{name}" for name, _ in backbone.trunk.named_parameters()}
    return {full: by_flat_name[backbone.classifier_name(name)] for name, full in names.items()}

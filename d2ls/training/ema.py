"""Exponential moving average of the weights."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class ExponentialMovingAverage:
    """Averages all floating-point tensors of a state dict; other tensors are copied.

    `torch.optim.swa_utils.AveragedModel` does not fit. Its first update copies the weights instead of averaging them
    with the initial ones. It averages integer buffers, and it counts a step that the device skipped.

    Args:
        network: the network whose weights are averaged; the average starts from them.
        decay: share of the old average that an update keeps. Early on it is lower, (1 + n) / (10 + n) after n updates,
            so that the initial weights are forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.weights = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, found_inf: Tensor) -> None:
        """Averages in the weights after an optimizer step.

        Args:
            network: the network.
            found_inf: one number on its device; where it is 1 the step was left out and the average stays. The host
                reads it later, and calls `uncount_update` for such a step.
        """
        self.updates += 1
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        share = (1 - keep) * (1 - found_inf)
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                self.weights[name].lerp_(tensor.detach(), share.to(tensor.dtype))
            else:
                self.weights[name].copy_(tensor)

    def uncount_update(self) -> None:
        """Takes the latest update out of the count: it was left out."""
        self.updates -= 1

    @contextlib.contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """Puts the averaged weights into the network, and the raw ones back at the end."""
        raw = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        network.load_state_dict(self.weights)
        try:
            yield
        finally:
            network.load_state_dict(raw)

    def load(self, weights: Mapping[str, Tensor], updates: int) -> None:
        """Continues from an average of a checkpoint."""
        self.updates = updates
        for name, tensor in self.weights.items():
            tensor.copy_(weights[name])

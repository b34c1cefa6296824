"""Moving average of the weights."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class AveragedWeights:
    """Exponential moving average of all floating-point tensors of a state dict; others are copied.

    Args:
        network: the network whose weights are averaged; the average starts from them.
        decay: share of the old average that a step keeps. Early on it is lower, (1 + n) / (10 + n) after n updates, so
            that the start is forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.weights = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Takes in the weights after an optimizer step."""
        self.updates += 1
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averaged, current = [], []
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                averaged.append(self.weights[name])
                current.append(tensor.detach())
            else:
                self.weights[name].copy_(tensor)
        torch._foreach_lerp_(averaged, current, 1 - keep)

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
        """Takes up an average from a checkpoint."""
        self.updates = updates
        for name, tensor in self.weights.items():
            tensor.copy_(weights[name])

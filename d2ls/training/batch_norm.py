"""Batch normalisation over all ranks, so that the number of ranks does not change the network.

PyTorch's own SyncBatchNorm needs a GPU; `RankBatchNorm` runs wherever `torch.distributed` does.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from d2ls.distributed import sum_over_ranks


class RankBatchNorm(nn.BatchNorm2d):
    """BatchNorm2d whose training statistics are computed over the samples of all ranks, which may differ in number.

    Args:
        source: the layer it replaces; it shares the parameters and buffers, and has the activation of timm's layers.
    """

    def __init__(self, source: nn.BatchNorm2d) -> None:
        super().__init__(
            source.num_features, source.eps, source.momentum, source.affine, source.track_running_stats
        )
        for name, parameter in source.named_parameters(recurse=False):
            setattr(self, name, parameter)
        for name, buffer in source.named_buffers(recurse=False):
            setattr(self, name, buffer)
        self.drop: Any = getattr(source, "drop", None) or nn.Identity()
        self.act: Any = getattr(source, "act", None) or nn.Identity()
        self.train(source.training)

    def forward(self, input: Tensor) -> Tensor:
        """Normalises B C H W; in training all ranks must call it together."""
        normalized = self._over_ranks(input) if self.training else super().forward(input)
        activated: Tensor = self.act(self.drop(normalized))
        return activated

    def _over_ranks(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            values = images.float()
            count = values.new_full((1,), values.numel() / self.num_features)
            sums, count = sum_over_ranks(torch.cat([values.sum((0, 2, 3)), count])).tensor_split([-1])
            mean = sums / count
            centred = values - mean.view(1, -1, 1, 1)
            variance = sum_over_ranks(centred.square().sum((0, 2, 3))) / count
            self._track(mean.detach(), variance.detach(), count.detach())
            result = centred * torch.rsqrt(variance + self.eps).view(1, -1, 1, 1)
            if self.affine:
                result = result * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return result.to(images.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * count / (count - 1).clamp_min(1), share)


def normalize_over_ranks(network: nn.Module) -> int:
    """Replaces every BatchNorm2d of a network in place; returns how many there were."""
    replaced = 0
    for name, child in network.named_children():
        if isinstance(child, nn.BatchNorm2d) and not isinstance(child, RankBatchNorm):
            setattr(network, name, RankBatchNorm(child))
            replaced += 1
        else:
            replaced += normalize_over_ranks(child)
    return replaced


@contextlib.contextmanager
def without_statistics(network: nn.Module) -> Iterator[None]:
    """Passes samples through the network that must not count in the statistics of batch norm.

    Each layer gets a batch without samples first, by which it takes part in the sums over ranks and adds nothing to
    them. The samples themselves are normalised by the running statistics.
    """
    layers = [
        layer
        for layer in network.modules()
        if isinstance(layer, (RankBatchNorm, nn.SyncBatchNorm)) and layer.training
    ]
    for layer in layers:
        setattr(layer, "forward", _joining(layer, layer.forward))  # noqa: B010 (mypy refuses to assign a method)
    try:
        with torch.compiler.set_stance("force_eager"):  # compiled code would not call the replaced method
            yield
    finally:
        for layer in layers:
            del layer.forward


def _joining(layer: nn.Module, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def join(input: Tensor) -> Tensor:
        joined = forward(input[:0])
        layer.training = False
        try:
            own = forward(input)
        finally:
            layer.training = True
        return torch.cat([joined, own])

    return join


class RunningStatistics:
    """The running statistics of all batch norm layers; they can be restored without waiting for the device.

    Args:
        network: its layers must not be replaced afterwards.
    """

    def __init__(self, network: nn.Module) -> None:
        layers = [
            layer
            for layer in network.modules()
            if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm))
        ]
        kinds: dict[torch.dtype, list[Tensor]] = {}
        for layer in layers:
            for buffer in layer.buffers(recurse=False):
                kinds.setdefault(buffer.dtype, []).append(buffer)
        self._kinds = list(kinds.values())
        self._saved: list[Tensor] = []

    def save(self) -> None:
        """Copies the values before a step."""
        self._saved = [_flat(buffers) for buffers in self._kinds]

    def restore_where(self, found_inf: Tensor) -> None:
        """Puts the saved values back where `found_inf` (one number on the device) is not 0."""
        for buffers, saved in zip(self._kinds, self._saved, strict=True):
            values = torch.where(found_inf != 0, saved, _flat(buffers))
            parts = torch.split(values, [buffer.numel() for buffer in buffers])
            for buffer, part in zip(buffers, parts, strict=True):
                buffer.copy_(part.view_as(buffer))


def _flat(buffers: list[Tensor]) -> Tensor:
    return torch.cat([buffer.detach().flatten() for buffer in buffers])

"""Batch normalisation over all ranks, so that the number of ranks does not change the network.

PyTorch's own SyncBatchNorm needs a GPU; `RankBatchNorm` runs wherever `torch.distributed` does.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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
            values = images.to(torch.promote_types(images.dtype, torch.float32))
            weight = self.weight if self.affine else values.new_ones(self.num_features)
            bias = self.bias if self.affine else values.new_zeros(self.num_features)
            result, mean, variance, count = _Normalize.apply(values, weight, bias, self.eps)
            self._track(mean, variance, count)
        normalized: Tensor = result.to(images.dtype)
        return normalized

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * count / (count - 1).clamp_min(1), share)


class _Normalize(torch.autograd.Function):
    """Batch normalisation over all ranks: one exchange forward, one backward, the rest by PyTorch's own kernels.

    The gradient is that of PyTorch with given statistics, plus the part that goes through the statistics. With
    x' = (x - mean) / deviation and sums over the N values of a channel on all ranks:

        dx = weight / deviation (dy - sum(dy) / N - x' sum(dy x') / N)
    """

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        count, mean, variance = _statistics(values)
        ctx.save_for_backward(values, weight, count, mean, variance)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        # PyTorch's backward kernel does not take an empty batch.
        result = (
            F.batch_norm(values, mean, variance, weight, bias, eps=eps) if len(values) else values.clone()
        )
        return result, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        values, weight, count, mean, variance = ctx.saved_tensors
        dx, dweight, dbias = torch.zeros_like(values), torch.zeros_like(mean), torch.zeros_like(mean)
        if len(values):
            dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
                grads[0], values, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
            )
        of_x, of_one = sum_over_ranks(torch.stack([dweight, dbias])) / count
        scale = weight * torch.rsqrt(variance + ctx.eps)
        slope = -scale * torch.rsqrt(variance + ctx.eps) * of_x
        dx.addcmul_(values, slope.view(1, -1, 1, 1)).sub_((scale * of_one + slope * mean).view(1, -1, 1, 1))
        return dx, dweight, dbias, None


def _statistics(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the number of values, the mean and the biased variance of the channels of B C H W over all ranks."""
    channels = values.shape[1]
    count = values.numel() // channels
    mean, variance = values.new_zeros(channels), values.new_zeros(channels)
    if count > 1:
        F.batch_norm(values, mean, variance, training=True, momentum=1.0)  # sets both
    elif count == 1:
        mean = values.flatten()
    # In float64 the square of the mean can be subtracted from the mean of the squares.
    own = values.new_full((1,), count, dtype=torch.float64)
    sums = torch.cat([own, mean * own, variance * (own - 1) + mean.double().square() * own])
    count_over_ranks, first, second = sum_over_ranks(sums).tensor_split([1, 1 + channels])
    first, second = first / count_over_ranks, second / count_over_ranks
    dtype, squared = values.dtype, (second - first.square()).clamp_min(0)
    return count_over_ranks.to(dtype), first.to(dtype), squared.to(dtype)


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

"""Batch norm over the images of all ranks, on any device and for ranks with unequal batches."""

from typing import TypeVar

import timm
import torch
from torch import Tensor, nn

from d2ls.distributed import sum_over_ranks, world_size

Module = TypeVar("Module", bound=nn.Module)


def synchronise_batch_norm(model: Module) -> Module:
    """Makes every batch norm of a model take its statistics over all ranks; call it after moving to the device.

    On CUDA devices the library's own fused version is used, elsewhere `SynchronisedBatchNorm`. Names of weights stay.
    Does nothing for a model without batch norm, or without other ranks.

    Returns:
        The model, changed in place.
    """
    if world_size() == 1:
        return model
    if all(parameter.is_cuda for parameter in model.parameters()):
        converted: Module = timm.layers.convert_sync_batchnorm(model)  # type: ignore[attr-defined,no-untyped-call]
        return converted
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, SynchronisedBatchNorm.of(child))
    return model


class SynchronisedBatchNorm(nn.BatchNorm2d):
    """Batch norm of B C H W with statistics over all ranks in training; what follows it inside timm stays in it."""

    after: nn.Sequential

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> "SynchronisedBatchNorm":
        """Takes over weights, statistics and mode of a batch norm, and the activation of timm's fused kind."""
        made = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        made.weight, made.bias = norm.weight, norm.bias
        made.running_mean, made.running_var = norm.running_mean, norm.running_var
        made.num_batches_tracked = norm.num_batches_tracked
        made.after = nn.Sequential(*(getattr(norm, part, nn.Identity()) for part in ("drop", "act")))
        return made.train(norm.training)

    def forward(self, images: Tensor) -> Tensor:
        """Normalises B C H W."""
        if not self.training or world_size() == 1:
            normed = super().forward(images)
        else:
            mean, variance = self._statistics(images.float())
            normed = (images - mean[:, None, None]) * (variance + self.eps).rsqrt()[:, None, None]
            normed = normed * self.weight[:, None, None] + self.bias[:, None, None]
        result: Tensor = self.after(normed)
        return result

    def _statistics(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance over all ranks (C each); keeps the running ones."""
        pixels = images.new_tensor([images.numel() / images.shape[1]])
        total = sum_over_ranks(torch.cat([images.sum((0, 2, 3)), pixels]))
        mean, count = total[:-1] / total[-1], total[-1]
        variance = sum_over_ranks((images - mean[:, None, None]).pow(2).sum((0, 2, 3))) / count
        if (
            self.running_mean is not None
            and self.running_var is not None
            and self.num_batches_tracked is not None
        ):
            self.num_batches_tracked.add_(1)
            momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean.detach(), momentum)
            self.running_var.lerp_(variance.detach() * count / (count - 1).clamp_min(1), momentum)
        return mean, variance

"""Differentiable sums and gathers over all ranks; without a process group they return their input.

A loss that every rank computes from reduced values is equal on all ranks. The backward pass of a sum over ranks is a
sum over ranks, so each rank receives world size times the gradient of its share. DistributedDataParallel then takes the
mean over ranks, which is exactly the gradient of that one loss.
"""

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_SINGLE: ContextVar[bool] = ContextVar("single", default=False)
_SIZES: ContextVar[Sequence[int] | None] = ContextVar("sizes", default=None)


@contextlib.contextmanager
def known_sizes(sizes: Sequence[int]) -> Iterator[None]:
    """Sets how many rows each rank has, which saves `gather_over_ranks` an exchange that waits for the device."""
    token = _SIZES.set(sizes)
    try:
        yield
    finally:
        _SIZES.reset(token)


@contextlib.contextmanager
def single_rank() -> Iterator[None]:
    """Makes sums and gathers stay on this rank, as without a process group."""
    token = _SINGLE.set(True)
    try:
        yield
    finally:
        _SINGLE.reset(token)


def world_size() -> int:
    """Returns the number of ranks; 1 without a process group."""
    if _SINGLE.get():
        return 1
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_ranks(values: Tensor) -> Tensor:
    """Returns the sum of a tensor over all ranks, differentiably; its shape must be equal on all ranks."""
    return values if world_size() == 1 else _sum(values)


def gather_over_ranks(rows: Tensor) -> Tensor:
    """Returns the tensors (B ...) of all ranks, concatenated in rank order, differentiably.

    B may differ between ranks, and be 0.
    """
    return rows if world_size() == 1 else _gather(rows)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _reduced(values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _reduced(grads[0])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        sizes = _SIZES.get() or _sizes(rows)
        ctx.start, ctx.count = sum(sizes[: dist.get_rank()]), len(rows)
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _reduced(grads[0])[ctx.start : ctx.start + ctx.count]


def _sum(values: Tensor) -> Tensor:
    summed: Tensor = _Sum.apply(values)
    return summed


def _gather(rows: Tensor) -> Tensor:
    gathered: Tensor = _Gather.apply(rows)
    return gathered


def _reduced(values: Tensor) -> Tensor:
    total = values.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def _sizes(rows: Tensor) -> list[int]:
    own = torch.full((1,), len(rows), device=rows.device)
    sizes = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(sizes, own)
    counts: list[int] = torch.cat(sizes).tolist()
    return counts

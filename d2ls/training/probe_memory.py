"""How many samples fit into device memory; found out before the first step, not in the middle of training."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from d2ls.distributed import single_rank
from d2ls.errors import TrainingError
from d2ls.losses import D2LSLoss
from d2ls.training.device import Device, Precision
from d2ls.training.process_group import ProcessGroup

_log = logging.getLogger(__name__)


def fitting_micro_batch_size(
    largest: int, attempt: Callable[[int], None], device: Device, group: ProcessGroup
) -> int:
    """Returns the micro-batch that fits on every rank: `largest`, or that halved as often as needed.

    Args:
        largest: samples to try first.
        attempt: computes forward and backward for so many samples, without communicating with other ranks.
        device: its memory is tried.
        group: the ranks; all call this together.

    Raises:
        TrainingError: not even one sample fits; on every rank.
    """

    def largest_that_fits() -> int:
        size = largest
        while size and not device.fits(attempt, size):
            size //= 2
        return size

    size = group.all_reduce_min(group.run_together(largest_that_fits))
    if size == 0:
        raise TrainingError(
            "out of device memory with one sample. Use a smaller loader.augmentation.crop_size, a smaller backbone, or "
            "train.precision=bf16"
        )
    if size < largest:
        _log.warning(
            "out of device memory with %d samples per worker: going on with train.micro_batch_size=%d, which fits",
            largest,
            size,
        )
    return size


def probe_memory(
    network: nn.Module,
    loss: D2LSLoss,
    optimizer: Optimizer,
    shape: tuple[int, int, int],
    device: Device,
    precision: Precision,
) -> Callable[[int], None]:
    """Makes an attempt for `fitting_micro_batch_size`: a step on black images, which leaves the network as it was.

    Args:
        network: takes raw pixels.
        loss: as in training; here it does not communicate.
        optimizer: the state that it has not allocated yet is allocated while the step is tried.
        shape: C H W of the training crop.
        device: where to try.
        precision: as in training.
    """

    def attempt(size: int) -> None:
        with device.preserved(network):
            network.train()
            future_state = _future_state(optimizer)
            images = torch.zeros(size, *shape, dtype=torch.uint8, device=device.torch_device)
            labels = torch.zeros(size, *shape[1:], dtype=torch.uint8, device=device.torch_device)
            with single_rank():
                with device.autocast(precision):
                    output = network(images)
                loss(output, labels).total.backward()
            future_state.clear()

    return attempt


def _future_state(optimizer: Optimizer) -> list[Tensor]:
    """Allocates what AdamW (two moments) and Lookahead (a copy) will allocate; nothing after a resume."""
    copies = 3 if getattr(optimizer, "lookahead", False) else 2
    return [
        torch.empty_like(parameter)
        for group in optimizer.param_groups
        for parameter in group["params"]
        if not optimizer.state.get(parameter)
        for _ in range(copies)
    ]

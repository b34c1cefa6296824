"""How many samples fit into device memory: found out before training, not in the middle of it."""

import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from d2ls.errors import TrainingError
from d2ls.training.device import Device, Precision
from d2ls.training.process_group import ProcessGroup

_log = logging.getLogger(__name__)


def fitting_micro_batch(
    wanted: int, attempt: Callable[[int], None], device: Device, group: ProcessGroup
) -> int:
    """Returns the largest micro-batch that fits on every rank: the wanted one, or that halved as often as needed.

    Args:
        wanted: samples of a rank's part.
        attempt: computes forward and backward for so many samples, without talking to other ranks.
        device: whose memory is asked for.
        group: the ranks; all call this together.

    Raises:
        TrainingError: not even one sample fits; on every rank.
    """

    def largest() -> int:
        size = wanted
        while size and not device.fits(attempt, size):
            size //= 2
        return size

    agreed = group.all_reduce_min(group.run_together(largest))
    if agreed == 0:
        raise TrainingError(
            "out of device memory with one sample. Use a smaller loader.augmentation.crop_size, a smaller backbone, or "
            "train.precision=bf16"
        )
    if agreed < wanted:
        _log.warning(
            "out of device memory with %d samples a worker: going on with train.micro_batch=%d, which fits",
            wanted,
            agreed,
        )
    return agreed


def probe_memory(
    network: nn.Module,
    optimizer: Optimizer,
    shape: tuple[int, int, int],
    device: Device,
    precision: Precision,
) -> Callable[[int], None]:
    """Makes an attempt for `fitting_micro_batch`: a step on made-up images, which leaves no trace in the network.

    Args:
        network: takes raw pixels.
        optimizer: what it has not allocated yet is held while the step is tried.
        shape: C H W of the training crop.
        device: where to try.
        precision: as in training.
    """

    def attempt(size: int) -> None:
        with device.preserved(network):
            network.train()
            held = _future_state(optimizer)
            images = torch.zeros(size, *shape, dtype=torch.uint8, device=device.place)
            with device.autocast(precision):
                output = network(images)
            logits = [each for each in (output.logits, output.static_logits) if each is not None]
            torch.stack([_made_up_loss(each) for each in logits]).sum().backward()  # type: ignore[no-untyped-call]
            held.clear()

    return attempt


def _future_state(optimizer: Optimizer) -> list[Tensor]:
    """Holds what AdamW (two moments) and Lookahead (a copy) allocate in their first steps; nothing after a resume."""
    copies = 3 if getattr(optimizer, "lookahead", False) else 2
    return [
        torch.empty_like(parameter)
        for group in optimizer.param_groups
        for parameter in group["params"]
        if not optimizer.state.get(parameter)
        for _ in range(copies)
    ]


def _made_up_loss(logits: Tensor) -> Tensor:
    """Holds what cross entropy and Dice hold."""
    values = logits.float()
    labels = torch.zeros(values.shape[0], *values.shape[2:], dtype=torch.int64, device=values.device)
    return F.cross_entropy(values, labels) + (values.softmax(dim=1) * values.detach()).mean()

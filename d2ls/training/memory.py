"""How many samples fit into device memory: found out before training, not in the middle of it."""

import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2ls.errors import TrainingError
from d2ls.training.ranks import Ranks
from d2ls.training.step import Precision, autocast

_log = logging.getLogger(__name__)


def fitting_micro_batch(wanted: int, attempt: Callable[[int], None], ranks: Ranks) -> int:
    """Returns the largest micro-batch that fits on every rank: the wanted one, or that halved as often as needed.

    Args:
        wanted: samples of a rank's part.
        attempt: computes forward and backward for so many samples, without talking to other ranks.
        ranks: the ranks; all call this together.

    Raises:
        TrainingError: not even one sample fits; on every rank.
    """
    size = wanted
    while size and not _fits(attempt, size):
        size //= 2
    agreed = ranks.smallest(size)
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


def _fits(attempt: Callable[[int], None], size: int) -> bool:
    try:
        attempt(size)
    except torch.OutOfMemoryError:
        return False
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return True


def rehearsal(
    network: nn.Module, shape: tuple[int, int, int], ranks: Ranks, precision: Precision
) -> Callable[[int], None]:
    """Makes an attempt for `fitting_micro_batch`: a step on made-up images, with what a loss and AdamW will hold.

    Args:
        network: has `.normalization`; its parameters' gradients are thrown away.
        shape: C H W of the training crop.
        ranks: says on which device.
        precision: as in training.
    """

    def attempt(size: int) -> None:
        images = torch.zeros(size, *shape, device=ranks.device)
        held = [
            torch.empty_like(each) for each in network.parameters() if each.requires_grad for _ in range(3)
        ]
        try:
            with autocast(ranks.device, precision):
                output = network(network.normalization(images))  # type: ignore[operator]
            logits = [each for each in (output.logits, output.static_logits) if each is not None]
            torch.stack([_made_up_loss(each) for each in logits]).sum().backward()  # type: ignore[no-untyped-call]
        finally:
            network.zero_grad()
            held.clear()

    return attempt


def _made_up_loss(logits: Tensor) -> Tensor:
    """Holds what cross entropy and Dice hold."""
    values = logits.float()
    labels = torch.zeros(values.shape[0], *values.shape[2:], dtype=torch.int64, device=values.device)
    return F.cross_entropy(values, labels) + (values.softmax(dim=1) * values.detach()).mean()

"""Runs a network on a CPU over the samples of a batch, one thread per slice.

PyTorch divides every operator among threads that wait for each other at its end. A network has thousands of small
operators, so the threads wait often. Threads that spin while they wait take the processor from the thread they wait
for as soon as other programs run. Threads that sleep cost a wake-up each time. Slices of a batch do not wait for each
other.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn


class SlicedForward:
    """Computes logits in inference mode. On a CPU the batch is divided among threads of one processor each.

    Args:
        device: where the network computes; on any other device than a CPU the batch stays whole.
        autocast: type for mixed precision; None computes in the type of the weights.
        threads: largest number of slices; None takes `torch.get_num_threads()`.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        autocast: torch.dtype | None = None,
        threads: int | None = None,
    ) -> None:
        self._device, self._autocast = device, autocast
        self._threads = (threads or torch.get_num_threads()) if device.type == "cpu" else 1
        self._pool: ThreadPoolExecutor | None = None

    def __call__(self, network: nn.Module, images: Tensor) -> Tensor:
        """Returns the logits of a batch, B K H W.

        Args:
            network: in evaluation mode; returns an object with `.logits`.
            images: B C H W, raw pixels on the device.
        """
        slices = min(self._threads, len(images))
        if slices < 2:
            return self._logits(network, images)
        pool = self._pool = self._pool or _single_threads(self._threads)
        parts = images.tensor_split(slices)
        return torch.cat(list(pool.map(self._logits, [network] * slices, parts)))

    def _logits(self, network: nn.Module, images: Tensor) -> Tensor:
        # Both modes are per thread, so they are set here and not by the caller.
        enabled = self._autocast is not None
        with torch.inference_mode(), torch.autocast(self._device.type, self._autocast, enabled=enabled):
            logits: Tensor = network(images).logits
        return logits


def _single_threads(count: int) -> ThreadPoolExecutor:
    """Starts threads in which PyTorch computes without further threads."""
    total = torch.get_num_threads()
    started = threading.Barrier(count + 1)

    def begin() -> None:
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(count, thread_name_prefix="forward", initializer=begin)
    for _ in range(count):
        pool.submit(int)
    started.wait()
    # The count is per thread, but new threads start with the count that was set last.
    torch.set_num_threads(total)
    return pool

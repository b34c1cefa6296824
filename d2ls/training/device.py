"""What differs between devices in training and evaluation: time, waiting, copies, memory, precision, batch norm.

A call on the CPU has done its work when it returns. A CUDA device only queues the work; reading a result waits for
everything queued before it. So a step reads nothing: it calls `reading`. The trainer calls the returned function once
the forward and backward pass of the next step are queued, so the GPU is never without work.
"""

import contextlib
import gc
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn

from d2ls.data import Batch
from d2ls.inference.threads import SlicedForward
from d2ls.training.batch_norm import normalize_over_ranks

Precision = Literal["fp32", "tf32", "bf16"]

_OUT_OF_MEMORY = re.compile(
    r"out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED", re.IGNORECASE
)


class Device:
    """The CPU, and the base class of all devices.

    Args:
        torch_device: where tensors live.

    Attributes:
        torch_device: the same.
        runs_ahead: whether a call may return before its work is done.
        name: product name, by which its peak is found; empty for CPUs.
        ddp_ids: the `device_ids` of DistributedDataParallel.
    """

    runs_ahead = False
    name = ""
    ddp_ids: list[int] | None = None

    def __init__(self, torch_device: torch.device) -> None:
        self.torch_device = torch_device

    def now(self) -> Any:
        """Returns a mark of the current point in the device's work."""
        return time.perf_counter()

    def seconds(self, start: Any, end: Any) -> float:
        """Returns the time between two marks; call it after the function of a later `reading` has returned."""
        return float(end - start)

    def upload(self, batch: Batch) -> Batch:
        """Copies a batch to the device, while the device works."""
        return batch.to(self.torch_device)

    def reading(self, values: Tensor) -> Callable[[], list[float]]:
        """Starts to copy a vector to the host; the returned function waits for it and for all work queued before."""
        return values.tolist

    def autocast(self, precision: Precision) -> AbstractContextManager[Any]:
        """Returns a context that computes in bfloat16 where the precision is bf16."""
        return torch.autocast(self.torch_device.type, dtype=torch.bfloat16, enabled=precision == "bf16")

    def inference(self, precision: Precision) -> SlicedForward:
        """Returns what computes logits of a batch in inference mode."""
        return SlicedForward(self.torch_device, autocast=torch.bfloat16 if precision == "bf16" else None)

    def set_precision(self, precision: Precision) -> None:
        """Allows or forbids TensorFloat-32 in matrix products and convolutions."""
        torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
        torch.backends.cudnn.allow_tf32 = precision != "fp32"

    def normalize_over_ranks(self, network: nn.Module) -> nn.Module:
        """Makes batch norm compute its statistics over all ranks; parameters and buffers stay the same objects."""
        normalize_over_ranks(network)
        return network

    def peak_memory(self) -> int:
        """Returns the peak device memory of this process in bytes; on a CPU, its peak resident memory."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def fits(self, attempt: Callable[[int], None], size: int) -> bool:
        """Returns whether an attempt with so many samples fits into memory; on a CPU it is not tried."""
        return True

    @contextlib.contextmanager
    def preserved(self, network: nn.Module) -> Iterator[None]:
        """Restores buffers, gradients, modes and random state at the end, bit for bit."""
        buffers = {name: buffer.detach().to("cpu", copy=True) for name, buffer in network.named_buffers()}
        gradients = [(parameter, parameter.grad) for parameter in network.parameters()]
        modes = [(module, module.training) for module in network.modules()]
        for parameter, _ in gradients:
            parameter.grad = None
        places = [self.torch_device] if self.torch_device.type != "cpu" else []
        try:
            with torch.random.fork_rng(places, device_type="cuda"):
                yield
        finally:
            with torch.no_grad():
                for name, buffer in network.named_buffers():
                    buffer.copy_(buffers[name])
            for parameter, gradient in gradients:
                parameter.grad = gradient
            for module, training in modes:
                module.training = training


class CudaDevice(Device):
    """A GPU. Copies run on their own stream, events measure time.

    Args:
        torch_device: a CUDA device.
        runtime: `torch.cuda`, or a stand-in for it.
    """

    runs_ahead = True

    def __init__(self, torch_device: torch.device, runtime: Any = torch.cuda) -> None:
        super().__init__(torch_device)
        self._runtime = runtime
        self._copies = runtime.Stream(torch_device)
        self.name = str(runtime.get_device_name(torch_device))
        self.ddp_ids = None if torch_device.index is None else [torch_device.index]

    def now(self) -> Any:
        """Returns an event, queued behind the work so far."""
        event = self._runtime.Event(enable_timing=True)
        event.record(self._runtime.current_stream(self.torch_device))
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """Returns the time between two events, which must have passed."""
        return float(start.elapsed_time(end)) / 1000

    def upload(self, batch: Batch) -> Batch:
        """Copies from page-locked memory on the stream of the copies; only work queued afterwards waits for it."""
        computing = self._runtime.current_stream(self.torch_device)
        with self._runtime.stream(self._copies):
            moved = self._to_device(batch, computing)
        computing.wait_stream(self._copies)
        return moved

    def reading(self, values: Tensor) -> Callable[[], list[float]]:
        """Queues a copy to page-locked memory and an event behind it."""
        copied = self._to_host(values)
        event = self._runtime.Event()
        event.record(self._runtime.current_stream(self.torch_device))

        def read() -> list[float]:
            event.synchronize()
            numbers: list[float] = copied.tolist()
            return numbers

        return read

    def normalize_over_ranks(self, network: nn.Module) -> nn.Module:
        """Uses PyTorch's SyncBatchNorm; timm's converter also knows timm's layers with an activation inside."""
        converted: nn.Module = timm.layers.convert_sync_batchnorm(network)  # type: ignore[attr-defined,no-untyped-call]
        return converted

    def peak_memory(self) -> int:
        """Returns the peak memory of tensors on the device."""
        return int(self._runtime.max_memory_allocated(self.torch_device))

    def fits(self, attempt: Callable[[int], None], size: int) -> bool:
        """Returns whether an attempt with so many samples runs without an out-of-memory error."""
        try:
            attempt(size)
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and not _OUT_OF_MEMORY.search(str(error)):
                raise
            return False
        finally:
            gc.collect()  # an interrupted graph may hold a reference to itself
            self._runtime.empty_cache()
        return True

    def _to_device(self, batch: Batch, computing: Any) -> Batch:
        moved = batch.to(self.torch_device, non_blocking=True)
        for tensor in (moved.images, moved.labels, moved.valid):
            tensor.record_stream(computing)  # else a later copy could get its memory before it was read
        return moved

    def _to_host(self, values: Tensor) -> Tensor:
        kept = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        return kept.copy_(values, non_blocking=True)


def open_device(torch_device: torch.device) -> Device:
    """Returns the `Device` of a torch device."""
    return CudaDevice(torch_device) if torch_device.type == "cuda" else Device(torch_device)


class Stopwatch:
    """Measures the parts of a step, without waiting for the device.

    Args:
        device: does the work.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._marks: list[tuple[str, Any, Any]] = []

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measures a part of the step."""
        start = self._device.now()
        yield
        self._marks.append((name, start, self._device.now()))

    def seconds(self) -> dict[str, float]:
        """Returns seconds by part; call it after the function of a later `reading` has returned."""
        seconds: dict[str, float] = {}
        for name, start, end in self._marks:
            seconds[name] = seconds.get(name, 0.0) + self._device.seconds(start, end)
        return seconds

"""A fake asynchronous device, for tests of the CUDA path on machines without a GPU.

Arithmetic is done at once, on the CPU. Events and copies stay in the queue of their stream until the host waits for a
later event, or another stream waits for their event. As on CUDA, reading an event that has not passed is an error ("not
ready"), and the target of a copy that has not run holds garbage.
"""

import contextlib
import time
from dataclasses import replace

import torch

from d2ls.training.device import CudaDevice, Device

GARBAGE = 77


class FakeStream:
    """A queue of actions, of which the first `done` have run."""

    def __init__(self, place=None):
        self.queue, self.done = [], 0

    def put(self, action):
        self.queue.append(action)
        return len(self.queue)

    def pass_until(self, place):
        while self.done < place:
            self.queue[self.done]()
            self.done += 1

    def wait_stream(self, other):
        other.pass_until(len(other.queue))


class FakeEvent:
    def __init__(self, runtime, enable_timing=False):
        self._runtime = runtime

    def record(self, stream):
        self._stream, self._time = stream, time.perf_counter()
        self._place = stream.put(lambda: None)

    def synchronize(self):
        self._runtime.waits.append(len(self._stream.queue) - self._place)
        self._stream.pass_until(self._place)

    def elapsed_time(self, end):
        for event in (self, end):
            if event._stream.done < event._place:
                raise RuntimeError("CUDA error: device not ready")
        return (end._time - self._time) * 1000


class FakeCuda:
    """Stands in for `torch.cuda`.

    Attributes:
        waits: for every wait of the host, how many actions were queued behind the one it waited for.
    """

    Stream = FakeStream

    def __init__(self):
        self.main = self.active = FakeStream()
        self.waits, self.emptied = [], 0

    def Event(self, enable_timing=False):  # noqa: N802 (torch's name)
        return FakeEvent(self, enable_timing)

    def current_stream(self, place):
        return self.active

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.active = self.active, stream
        yield
        self.active = before

    def get_device_name(self, place):
        return "NVIDIA L4"

    def max_memory_allocated(self, place):
        return 123

    def empty_cache(self):
        self.emptied += 1


class FakeDevice(CudaDevice):
    """`CudaDevice` on the fake runtime: its own code runs, only the copies are replaced by delayed ones."""

    def __init__(self):
        super().__init__(torch.device("cpu"), FakeCuda())
        self.runtime = self._runtime

    normalize_over_ranks = Device.normalize_over_ranks

    def small_memory(self, network, most):
        """Makes the network run out of memory in the middle of a forward pass of more samples than `most`."""

        def refuse(module, inputs):
            if len(inputs[0][0]) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        return network.aggregator.register_forward_pre_hook(refuse)

    def _late(self, source):
        target = torch.full_like(source, GARBAGE)
        self.runtime.active.put(lambda: target.copy_(source))
        return target

    def _to_device(self, batch, computing):
        moved = {name: self._late(getattr(batch, name)) for name in ("images", "labels", "valid")}
        return replace(batch, **moved)

    def _to_host(self, values):
        return self._late(values.clone())

"""System metrics of the machine of rank 0, under the names that the MLflow UI expects.

MLflow's own monitor sends samples directly, and loses them if the store is unavailable; here they go through the spool.
"""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import psutil

MEGABYTE = 1e6
INTERVAL = 10.0


class Monitor:
    """Samples processor, memory, disk, network and GPU in a thread.

    Args:
        log: called with the values and the seconds since the start.
        started: zero of the time axis, in seconds since the epoch; None: now. A resumed run continues its axis.
        interval: seconds between samples.
    """

    def __init__(
        self,
        log: Callable[[Mapping[str, float], int], None],
        started: float | None = None,
        interval: float = INTERVAL,
    ) -> None:
        self._log, self._interval = log, interval
        self._stop = threading.Event()
        self._network = psutil.net_io_counters()
        self._start = time.time() if started is None else started
        self._thread = threading.Thread(target=self._work, name="system-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops."""
        self._stop.set()
        self._thread.join(timeout=5.0)

    def _work(self) -> None:
        psutil.cpu_percent()
        while not self._stop.wait(self._interval):
            seconds = int(time.time() - self._start)
            self._log({f"system/{name}": value for name, value in self.sample().items()}, seconds)

    def sample(self) -> dict[str, float]:
        """Returns the current values by MLflow's names."""
        memory, disk, network = psutil.virtual_memory(), psutil.disk_usage("/"), psutil.net_io_counters()
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / MEGABYTE,
            "system_memory_usage_percentage": memory.percent,
            "disk_usage_megabytes": disk.used / MEGABYTE,
            "disk_usage_percentage": disk.percent,
            "process_memory_megabytes": psutil.Process().memory_info().rss / MEGABYTE,
        }
        if network is not None and self._network is not None:
            values["network_receive_megabytes"] = (network.bytes_recv - self._network.bytes_recv) / MEGABYTE
            values["network_transmit_megabytes"] = (network.bytes_sent - self._network.bytes_sent) / MEGABYTE
        return {**values, **_gpus()}


def _gpus() -> dict[str, float]:
    """Returns the memory of this process's GPU, and its load if NVIDIA's library is installed."""
    import torch

    cuda: Any = torch.cuda
    if not cuda.is_available() or not cuda.is_initialized():
        return {}
    device = cuda.current_device()
    free, total = cuda.mem_get_info(device)
    values = {
        f"gpu_{device}_memory_usage_megabytes": (total - free) / MEGABYTE,
        f"gpu_{device}_memory_usage_percentage": 100 * (total - free) / total,
    }
    try:
        values[f"gpu_{device}_utilization_percentage"] = float(cuda.utilization(device))
    except (ImportError, RuntimeError):  # pynvml is not installed, or not allowed here
        return values
    return values

"""Settings with which our processes compute on CPUs: freed memory is kept, waiting threads sleep."""

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # mallopt(3)
_LARGEST = 2**31 - 1


def set_up_process() -> None:
    """Sets up a process before it loads PyTorch; its children inherit the environment."""
    # Waiting threads sleep: with other programs on the machine, spinning threads take the processor from the thread
    # that they wait for. The variable is read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Lets glibc keep large freed blocks for the next allocation; does nothing with other C libraries.

    PyTorch has no pool of memory on CPUs. By default glibc returns a freed large tensor to the system. The system
    then fills every page of the next one with zeros, which takes a third of the processor time of a forward pass.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST)
        mallopt(_M_TOP_PAD, 2**26)

"""Restores the state of a process after a training, so that the next one starts as in a new process."""

import gc
import logging
import os
import random
import sys
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import numpy as np
import torch

T = TypeVar("T")
Result = TypeVar("Result")
_LOGGERS = ("", "d2ls", "pipeline", "mlflow", "ray")


@dataclass(frozen=True)
class ProcessState:
    """Process-wide settings that a training may change.

    Attributes:
        environment: all environment variables.
        folder: the working folder.
        threads: CPU threads of PyTorch.
        flags: precision, determinism and default type of PyTorch.
        generators: states of the random number generators on the CPU.
        logs: level and handlers of the loggers of this project and of its libraries.
    """

    environment: dict[str, str]
    folder: str
    threads: int
    flags: dict[str, Any]
    generators: tuple[Any, Any, torch.Tensor]
    logs: dict[str, tuple[int, list[logging.Handler]]] = field(default_factory=dict)

    @classmethod
    def current(cls) -> Self:
        """Returns the current state of this process."""
        return cls(
            environment=dict(os.environ),
            folder=os.getcwd(),  # noqa: PTH109
            threads=torch.get_num_threads(),
            flags={
                "matmul tf32": torch.backends.cuda.matmul.allow_tf32,
                "cudnn tf32": torch.backends.cudnn.allow_tf32,
                "benchmark": torch.backends.cudnn.benchmark,
                "cudnn deterministic": torch.backends.cudnn.deterministic,
                "deterministic": torch.are_deterministic_algorithms_enabled(),
                "type": torch.get_default_dtype(),
                "gradients": torch.is_grad_enabled(),
            },
            generators=(random.getstate(), np.random.get_state(), torch.get_rng_state()),  # noqa: NPY002
            logs={
                name: (logging.getLogger(name).level, list(logging.getLogger(name).handlers))
                for name in _LOGGERS
            },
        )

    def restore(self) -> None:
        """Restores the state, and frees unused device memory and compiled code."""
        os.environ.clear()
        os.environ.update(self.environment)
        os.chdir(self.folder)
        torch.set_num_threads(self.threads)
        torch.backends.cuda.matmul.allow_tf32 = self.flags["matmul tf32"]
        torch.backends.cudnn.allow_tf32 = self.flags["cudnn tf32"]
        torch.backends.cudnn.benchmark = self.flags["benchmark"]
        torch.backends.cudnn.deterministic = self.flags["cudnn deterministic"]
        torch.use_deterministic_algorithms(self.flags["deterministic"])
        torch.set_default_dtype(self.flags["type"])
        torch.set_grad_enabled(self.flags["gradients"])
        random.setstate(self.generators[0])
        np.random.set_state(self.generators[1])  # noqa: NPY002
        torch.set_rng_state(self.generators[2])
        for name, (level, handlers) in self.logs.items():
            logger = logging.getLogger(name)
            logger.setLevel(level)
            logger.handlers[:] = handlers
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()  # its recompilation limits count over the whole process
        gc.collect()
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def unchanged_after(training: Generator[T, None, Result]) -> Generator[T, None, Result]:
    """Runs a generator; when it ends or is closed, restores the state that the process had before its first step."""
    before = ProcessState.current()
    try:
        return (yield from training)
    finally:
        before.restore()

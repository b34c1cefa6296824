"""Runs MLflow's servers as child processes on loopback, and ends them with everything they started."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path


def free_port() -> int:
    """Returns a port on which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def mlflow(
    *arguments: str, log: Path, health: str, environment: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Runs `mlflow ARGUMENTS` during the block, which starts when `health` answers 200."""
    settings = {
        **os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **(environment or {}),
    }  # fmt: skip
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *arguments], stdout=output, stderr=output, env=settings,
            start_new_session=True, cwd=log.parent,
        )  # fmt: skip
        try:
            _wait(process, health, log)
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(process: "subprocess.Popen[bytes]", health: str, log: Path, seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"mlflow ended early: {log.read_text()[-2000:]}")
        with contextlib.suppress(OSError, urllib.error.URLError), urllib.request.urlopen(health, timeout=5):
            return
        time.sleep(0.3)
    raise AssertionError(f"{health} did not answer in {seconds} s: {log.read_text()[-2000:]}")

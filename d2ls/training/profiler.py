"""A trace of some steps, to be opened at https://ui.perfetto.dev or in chrome://tracing."""

import torch
from torch.profiler import ProfilerActivity, profile

from d2ls import storage
from d2ls.scratch import scratch_folder
from d2ls.training.callbacks import Callback, StepReport


class ProfileCallback(Callback):
    """Records some steps of this rank, and writes the trace when they are done.

    Args:
        uri: where the trace is written, compressed JSON.
        first: step of this process before which recording starts; the ones before warm up.
        steps: how many are recorded.
    """

    def __init__(self, uri: str, first: int = 3, steps: int = 3) -> None:
        self._uri, self._first, self._left = uri, first, steps
        self._seen = 0
        kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
        self._profile = profile(activities=kinds, record_shapes=True)
        self._running = False

    def on_step(self, report: StepReport) -> None:
        """Starts, goes on or ends."""
        self._seen += 1
        if self._running:
            self._left -= 1
            if self._left == 0:
                self._finish()
        elif self._seen == self._first and self._left:
            self._profile.start()
            self._running = True

    def close(self) -> None:
        """Writes what was recorded of a run that was too short."""
        if self._running:
            self._finish()

    def _finish(self) -> None:
        self._running = False
        self._profile.stop()
        with scratch_folder("profile") as scratch:
            trace = scratch / "trace.json.gz"
            self._profile.export_chrome_trace(str(trace))
            storage.upload(trace, self._uri)

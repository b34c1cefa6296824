"""A trace of some steps, for https://ui.perfetto.dev or chrome://tracing."""

import torch
from torch.profiler import ProfilerActivity, profile

from d2ls import storage
from d2ls.scratch import scratch_folder
from d2ls.training.callbacks import Callback, StepReport


class ProfileCallback(Callback):
    """Records some steps of this rank and writes their trace.

    Args:
        uri: where the trace is written, compressed JSON.
        first: step of this process after which recording starts; the ones before it are for warm-up.
        steps: number of recorded steps.
    """

    def __init__(self, uri: str, first: int = 3, steps: int = 3) -> None:
        self._uri, self._first, self._left = uri, first, steps
        self._seen = 0
        kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
        self._profile = profile(activities=kinds, record_shapes=True)
        self._running = False

    def on_step(self, report: StepReport) -> None:
        """Starts or ends the recording."""
        self._seen += 1
        if self._running:
            self._left -= 1
            if self._left == 0:
                self._finish()
        elif self._seen == self._first and self._left:
            self._profile.start()
            self._running = True

    def close(self) -> None:
        """Writes the trace of a run that ended while recording."""
        if self._running:
            self._finish()

    def _finish(self) -> None:
        self._running = False
        self._profile.stop()
        with scratch_folder("profile") as scratch:
            trace = scratch / "trace.json.gz"
            self._profile.export_chrome_trace(str(trace))
            storage.upload(trace, self._uri)

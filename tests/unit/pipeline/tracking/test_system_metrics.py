"""System metrics of a resumed run continue: their step is the time since the run began."""

import time

from pipeline.tracking.system_metrics import Monitor


def test_a_resumed_run_counts_on() -> None:
    logged: list[int] = []
    monitor = Monitor(
        lambda values, seconds: logged.append(seconds), started=time.time() - 500, interval=0.01
    )
    deadline = time.monotonic() + 10
    while not logged and time.monotonic() < deadline:
        time.sleep(0.01)
    monitor.close()
    assert 500 <= logged[0] < 520

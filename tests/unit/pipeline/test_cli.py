import os

import pytest

from pipeline.cli import run_command


@pytest.mark.parametrize(("given", "result"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_a_command_lets_waiting_threads_sleep_unless_told_otherwise(monkeypatch, given, result):
    """Spinning threads took 45 times as long with other work on the machine: benchmarks/results/cpu_inference.md."""
    monkeypatch.setenv("OMP_WAIT_POLICY", given or "")
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    seen = []
    with pytest.raises(SystemExit):
        run_command(lambda: seen.append(os.environ["OMP_WAIT_POLICY"]))
    assert seen == [result]

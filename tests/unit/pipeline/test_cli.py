import os
import subprocess
import sys

import pytest

from pipeline import promote, register, sweep, train
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


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("print('x' * 100_000, flush=True)", "Broken pipe"),
        ("print('x')", "Broken pipe"),
        ("open('/nowhere/map.tif')", "No such file or directory: '/nowhere/map.tif'"),
    ],
)
def test_an_error_of_the_system_is_a_message_and_exit_status_1(program: str, words: str):
    read, write = os.pipe()
    os.close(read)
    code = f"from pipeline.cli import run_command; run_command(lambda: {program} and None)"
    environment = {key: value for key, value in os.environ.items() if key != "D2LS_TRACEBACK"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert words in done.stderr


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (train, "--name"),
        (train, "--resume"),
        (sweep, "--name"),
        (sweep, "--resume"),
        (register, "--name"),
        (promote, "--force"),
    ],
)
def test_an_empty_name_starts_no_new_run(command, option, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(["nowhere", option, ""])
    assert f"argument {option}: the text is empty" in capsys.readouterr().err

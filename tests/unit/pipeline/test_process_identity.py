"""A process is told apart from a dead one, from a new one with its id, and from one in another container."""

import socket
import subprocess
import sys

import pytest

from pipeline import process_identity

NO_PROCESS = "4194305"
"""Above the largest process id."""


def test_a_process_is_gone_only_when_it_certainly_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_identity, "_machine", lambda: "0badcafe-4026531836-abc")
    own = process_identity.this_process()
    host, machine, pid, ticks = own.rsplit(":", 3)
    assert host == socket.gethostname()
    assert process_identity.process_id(own) == pid
    assert not process_identity.is_gone(own)
    assert process_identity.is_gone(
        f"{host}:{machine}:{pid}:{int(ticks) - 60}"
    )  # a new process with its number
    assert process_identity.is_gone(f"{host}:{machine}:{NO_PROCESS}:1")
    assert process_identity.is_gone(
        f"{host}:00000000-4026531836-abc:{pid}:{ticks}"
    )  # the machine booted since
    assert not process_identity.is_gone(
        f"{host}:00000000-4026531836-xyz:{pid}:1"
    )  # another machine of this name
    assert not process_identity.is_gone(f"another-host:00000000-4026531836-abc:{NO_PROCESS}:1")
    for damaged in ("", "host", f"{host}:{NO_PROCESS}:1.0"):
        assert not process_identity.is_gone(damaged)


@pytest.mark.parametrize("boot", ["0badcafe", "00000000"])
def test_processes_of_another_container_with_the_same_host_name_are_unknown(
    boot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_identity, "_machine", lambda: f"{boot}-4026532188-abc")
    theirs = process_identity.this_process().rsplit(":", 2)[0] + f":{NO_PROCESS}:1"
    monkeypatch.setattr(process_identity, "_machine", lambda: "0badcafe-4026532555-abc")
    assert not process_identity.is_gone(theirs)
    assert not process_identity.is_another(theirs)


def test_another_process_is_one_that_lives_here() -> None:
    assert not process_identity.is_another(process_identity.this_process())
    assert not process_identity.is_another("")
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = process_identity.name_of(other.pid)
    assert process_identity.is_another(name)
    assert not process_identity.is_another(name.replace(process_identity._machine(), "elsewhere"))
    other.communicate(b"\n")
    assert not process_identity.is_another(name)

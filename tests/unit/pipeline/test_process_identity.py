"""A process is told from a dead one, and from a new one with its number."""

import socket
import subprocess
import sys

from pipeline import process_identity


def test_a_driver_is_gone_only_when_it_certainly_is() -> None:
    own = process_identity.this_process()
    host, pid, start = own.rsplit(":", 2)
    boot, _, ticks = start.rpartition("-")
    assert host == socket.gethostname()
    assert process_identity.process_id(own) == pid
    assert not process_identity.is_gone(own)
    assert process_identity.is_gone(
        f"{host}:{pid}:{boot}-{int(ticks) - 60}"
    )  # the number was given to a new process
    assert process_identity.is_gone(f"{host}:{pid}:00000000-{ticks}")  # the same ticks after another boot
    assert process_identity.is_gone(f"{host}:4194305:1.0")  # above the largest process id
    assert not process_identity.is_gone("another-host:4194305:1.0")
    assert not process_identity.is_gone("")


def test_another_process_is_one_that_lives_here() -> None:
    assert not process_identity.is_another(process_identity.this_process())
    assert not process_identity.is_another("")
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = process_identity.name_of(other.pid)
    assert process_identity.is_another(name)
    assert not process_identity.is_another(name.replace(socket.gethostname(), "another-host"))
    other.communicate(b"\n")
    assert not process_identity.is_another(name)

"""A process is told from a dead one, and from a new one with its number."""

import socket
import subprocess
import sys

import psutil

from pipeline import driver


def test_a_driver_is_gone_only_when_it_certainly_is() -> None:
    own = driver.this_process()
    host, pid, started = own.rsplit(":", 2)
    assert host == socket.gethostname()
    assert driver.process_id(own) == pid
    assert not driver.is_gone(own)
    assert driver.is_gone(f"{host}:{pid}:{float(started) - 60}")  # the number was given to a new process
    assert driver.is_gone(f"{host}:4194305:1.0")  # above the largest process id
    assert not driver.is_gone("another-host:4194305:1.0")
    assert not driver.is_gone("")


def test_another_process_is_one_that_lives_here() -> None:
    assert not driver.is_another(driver.this_process())
    assert not driver.is_another("")
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = f"{socket.gethostname()}:{other.pid}:{psutil.Process(other.pid).create_time():.2f}"
    assert driver.is_another(name)
    assert not driver.is_another(name.replace(socket.gethostname(), "another-host"))
    other.communicate(b"\n")
    assert not driver.is_another(name)

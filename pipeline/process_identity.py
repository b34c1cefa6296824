"""Unique names of processes. They show whether the process that owns a run is still alive.

An identity is `host:machine:pid:start`. `machine` holds the boot, the process-id namespace and the machine id:
containers may share a host name and a boot, and each numbers its processes from 1.
"""

import os
import socket
from pathlib import Path

import psutil

HOST_NAMESPACE = "4026531836"
"""Inode of Linux's first process-id namespace: a process in it does not run in a container."""


def this_process() -> str:
    """Returns the identity of this process."""
    return name_of(os.getpid())


def name_of(pid: int) -> str:
    """Returns the identity of a living process of this machine (and of this container, in a container).

    Raises:
        psutil.NoSuchProcess: there is none.
    """
    return f"{socket.gethostname()}:{_machine()}:{pid}:{_start(pid)}"


def is_gone(name: str) -> bool:
    """Returns whether the process has certainly ended; False if unknown."""
    host, machine, pid, _ = _parts(name)
    if machine == _machine():
        return pid.isdigit() and not _lives(name)
    return host == socket.gethostname() and _booted_since(machine)


def is_another(name: str) -> bool:
    """Returns whether it is another, living process of this machine."""
    return name != this_process() and _parts(name)[1] == _machine() and _lives(name)


def process_id(name: str) -> str:
    """Returns the process id in an identity."""
    return _parts(name)[2]


def _parts(name: str) -> tuple[str, str, str, str]:
    host, machine, pid, start = (name.rsplit(":", 3) + [""] * 3)[:4]
    return host, machine, pid, start


def _lives(name: str) -> bool:
    """Returns whether the process lives and its id was not reused; True if unknown."""
    pid = int(process_id(name))
    try:
        return name == name_of(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _machine() -> str:
    """Returns `boot-namespace-machine id`, each empty if the system does not provide it."""
    boot = _text("/proc/sys/kernel/random/boot_id")[:8] or str(int(psutil.boot_time()))
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink()).strip("pid:[]")
    except OSError:  # not Linux
        namespace = ""
    return f"{boot}-{namespace}-{_text('/etc/machine-id')[:12]}"


def _booted_since(machine: str) -> bool:
    """Returns whether a process ran on this machine, outside containers, before its last boot."""
    (boot, *there), (now, *here) = machine.split("-"), _machine().split("-")
    return boot != now and there == here and here[0] == HOST_NAMESPACE and bool(here[1])


def _text(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _start(pid: int) -> str:
    """Returns the start of a process in clock ticks since the boot, which setting the clock does not change."""
    if not Path("/proc/self/stat").exists():  # not Linux
        return f"{psutil.Process(pid).create_time():.2f}"
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError) as error:
        raise psutil.NoSuchProcess(pid) from error

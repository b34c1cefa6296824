"""Names a process for ever, so that what it began can be told from what was left behind by a dead one."""

import os
import socket
from pathlib import Path

import psutil


def this_process() -> str:
    """Names this process: host, process id and start."""
    return name_of(os.getpid())


def name_of(pid: int) -> str:
    """Names a living process of this host.

    Raises:
        psutil.NoSuchProcess: there is none.
    """
    return f"{socket.gethostname()}:{pid}:{_start(pid)}"


def is_gone(name: str) -> bool:
    """Says whether the named process ran on this host and has ended; False where one cannot tell."""
    return _on_this_host(name) and not _lives(name)


def is_another(name: str) -> bool:
    """Says whether the named process is another one of this host, and alive."""
    return name != this_process() and _on_this_host(name) and _lives(name)


def process_id(name: str) -> str:
    """The process id in a name."""
    return name.rsplit(":", 2)[1]


def _on_this_host(name: str) -> bool:
    host, pid, _ = (*name.rsplit(":", 2), "", "")[:3]
    return host == socket.gethostname() and pid.isdigit()


def _lives(name: str) -> bool:
    """Says whether the process lives, and its number was not given to a new one; True where one cannot tell."""
    pid = int(process_id(name))
    try:
        return name == name_of(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _start(pid: int) -> str:
    """Start of a process: boot and clock ticks since then, which no setting of the clock moves (time if not Linux)."""
    boot, stat = Path("/proc/sys/kernel/random/boot_id"), Path(f"/proc/{pid}/stat")
    if not boot.exists():
        return f"{psutil.Process(pid).create_time():.2f}"
    try:
        return f"{boot.read_text()[:8]}-{stat.read_text().rsplit(')', 1)[1].split()[19]}"
    except (OSError, IndexError) as error:
        raise psutil.NoSuchProcess(pid) from error

"""Names a process for ever, so that what it began can be told from what was left behind by a dead one."""

import os
import socket

import psutil


def this_process() -> str:
    """Names this process: host, process id and start time."""
    return f"{socket.gethostname()}:{os.getpid()}:{psutil.Process().create_time():.2f}"


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
    _, pid, started = name.rsplit(":", 2)
    try:
        process = psutil.Process(int(pid))
        return abs(process.create_time() - float(started)) <= 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except (psutil.AccessDenied, ValueError):
        return True

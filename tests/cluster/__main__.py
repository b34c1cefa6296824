"""Machines to try docs/cluster/own_machines.md: a laptop, three hosts and a storage, all simulated on this machine.

    python -m tests.cluster     brings them up and opens a terminal; called again in the meantime, opens one more

Needs Linux, root, and openssh-server, rsync, iproute2. `exit` in the first terminal ends and removes the machines.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.cluster.estate import own_machines
from tests.cluster.machines import ROOT, command_on, why_not

FOLDER = Path(tempfile.gettempdir()) / "d2ls-machines"
LAPTOP = FOLDER / "laptop.pid"


def terminal(process: int) -> int:
    """Opens a terminal on the laptop, or runs the lines that come from a file or a pipe; returns the exit status."""
    line = ["env", f"--chdir={ROOT}", "bash", "--norc"]
    if sys.stdin.isatty():
        line = ["script", "--quiet", "--return", "--command", " ".join(line), "/dev/null"]
    variables = {"PS1": "laptop:\\w$ ", "TERM": os.environ.get("TERM", "dumb")}
    return subprocess.run(command_on(process, line, variables), check=False).returncode


def running() -> int | None:
    """Returns the laptop's first process if the machines are up."""
    with contextlib.suppress(OSError, ValueError):
        process = int(LAPTOP.read_text())
        os.kill(process, 0)
        return process
    return None


def main() -> int:
    """Starts the machines, or connects to running ones."""
    if missing := why_not():
        print(missing, file=sys.stderr)
        return 1
    if process := running():
        return terminal(process)
    shutil.rmtree(FOLDER, ignore_errors=True)
    try:
        with own_machines(FOLDER) as (machines, storage):
            LAPTOP.write_text(str(machines.laptop.process))
            hosts = ", ".join(f"{host.name} {host.address}" for host in machines.hosts.values())
            print(f"A terminal on the laptop; {hosts}; storage {storage}; `exit` ends them all.", flush=True)
            return terminal(machines.laptop.process)
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())

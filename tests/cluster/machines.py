"""Machines simulated by namespaces: a laptop, and hosts with an sshd each, on a private network.

    laptop 10.77.0.1 --bridge-- head 10.77.0.2, worker-1 10.77.0.3, worker-2 10.77.0.4

Every machine has its own processes, network, host name, home, /tmp and /dev/shm; the rest is shared and read-only,
including the Python environment. The hosts live in the laptop's process namespace, so ending the laptop ends them all.
`ray stop` stops every Ray that it sees, and it sees only its machine.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
HOME = "/run/d2ls"
TOOLS = ("unshare", "nsenter", "setpriv", "ip", "ssh", "rsync", "ssh-keygen", "/usr/sbin/sshd")
NETWORK = "10.77.0"
BINARIES = Path(os.environ.get("VIRTUAL_ENV", ROOT / ".venv")) / "bin"


def why_not() -> str:
    """Returns what is missing to run machines here; empty if nothing is."""
    if os.name != "posix" or os.geteuid() != 0:
        return "namespaces with their own sshd need root"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"missing {', '.join(missing)}: apt-get install openssh-server iproute2 rsync util-linux"
    probe = subprocess.run(
        ["unshare", "-n", "-m", "-p", "-u", "-f", "true"], capture_output=True, check=False
    )
    return "" if probe.returncode == 0 else f"no namespaces here: {probe.stderr.decode().strip()}"


def command_on(process: int, line: Sequence[str], environment: Mapping[str, str] | None = None) -> list[str]:
    """Returns a command line that runs another command on the machine with this first process."""
    variables = {
        "HOME": HOME,
        "USER": "root",
        "LANG": "C.UTF-8",
        "PATH": f"{BINARIES}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        **(environment or {}),
    }
    entered = ["nsenter", "-t", str(process), "-m", "-n", "-p", "-u"]
    return [*entered, "env", "-i", *(f"{key}={value}" for key, value in variables.items()), *line]


@dataclass(frozen=True)
class Machine:
    """A running machine.

    Attributes:
        name: its host name.
        address: its IPv4 address.
        process: id of its first process on this machine.
        holder: process that waits for it.
    """

    name: str
    address: str
    process: int
    holder: subprocess.Popen[bytes]

    def command(self, line: Sequence[str], environment: Mapping[str, str] | None = None) -> list[str]:
        """Returns a command line that runs another command there; it inherits only the path."""
        return command_on(self.process, line, environment)

    def run(
        self,
        line: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        timeout: float = 300,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command there and returns its output, both streams as one."""
        done = subprocess.run(
            self.command(["env", f"--chdir={cwd}", *line], environment), text=True, timeout=timeout, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"{self.name}: {line} ended with {done.returncode}:\n{done.stdout}")
        return done

    def shell(self, script: str, **options: object) -> str:
        """Runs a bash script there and returns its output."""
        return self.run(["bash", "-c", script], **options).stdout  # type: ignore[arg-type]

    def processes(self) -> list[int]:
        """Lists the ids of the machine's processes on this machine, without its first process."""
        space = _space(self.process)
        return [pid for pid in _all_processes() if pid != self.process and _space(pid) == space]

    def kill(self) -> None:
        """Kills the machine."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process, signal.SIGKILL)
        self.holder.wait(timeout=30)


@dataclass(frozen=True)
class Machines:
    """A laptop and the hosts it reaches; all of them see `folder` as /run/machines."""

    folder: Path
    laptop: Machine
    hosts: dict[str, Machine]

    @property
    def head(self) -> Machine:
        """The first host."""
        return next(iter(self.hosts.values()))


@contextlib.contextmanager
def machines(folder: Path, names: Sequence[str]) -> Iterator[Machines]:
    """Starts machines, and ends all of them after the block.

    Args:
        folder: for keys and logs; new.
        names: of the hosts, the head first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for key in ("key", "host_key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True
        )  # fmt: skip
    started: list[Machine] = []
    try:
        laptop = _start(folder, "laptop", f"{NETWORK}.1", None)
        started.append(laptop)
        _network(laptop, "ip link add hosts type bridge && ip link set hosts up && ip link set lo up")
        _network(laptop, f"ip addr add {laptop.address}/24 dev hosts")
        for number, name in enumerate(names, start=2):
            host = _start(folder, name, f"{NETWORK}.{number}", laptop)
            started.append(host)
            _connect(laptop, host, number)
        yield Machines(folder, laptop, {machine.name: machine for machine in started[1:]})
    finally:
        for machine in reversed(started):
            machine.kill()


def _start(folder: Path, name: str, address: str, inside: Machine | None) -> Machine:
    exchange = folder / name
    exchange.mkdir()
    enter = ["nsenter", "-t", str(inside.process), "-p"] if inside else []
    unshare = ["unshare", "-n", "-m", "-p", "-u", "-f", "--mount-proc", "--kill-child=SIGKILL"]
    line = [*enter, *unshare, "bash", str(HERE / "machine.sh"), name, HOME, str(folder), str(ROOT)]
    log = (exchange / "machine.log").open("wb")
    # If the tests are killed, the kernel ends the laptop, and with it all hosts.
    holder = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *line], stdout=log, stderr=log)
    for _ in range(300):
        if (exchange / "ready").exists():
            return Machine(name, address, _deepest(holder.pid, str(HERE / "machine.sh")), holder)
        if holder.poll() is not None:
            break
        time.sleep(0.1)
    holder.kill()
    raise AssertionError(f"{name} did not start: {(exchange / 'machine.log').read_text()}")


def _deepest(parent: int, marker: str) -> int:
    """Follows the chain of children down to the process that runs the marked script."""
    for pid in _children(parent):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        if words[:2] == ["bash", marker]:
            return pid
        with contextlib.suppress(LookupError):
            return _deepest(pid, marker)
    raise LookupError(marker)


def _children(parent: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def _network(machine: Machine, script: str) -> None:
    """Runs a script in the network of a machine, but in the process namespace of this one."""
    subprocess.run(["nsenter", "-t", str(machine.process), "-n", "bash", "-ec", script], check=True)


def _connect(laptop: Machine, host: Machine, number: int) -> None:
    _network(
        laptop,
        f"ip link add host{number} type veth peer name eth0 netns {host.process} && "
        f"ip link set host{number} master hosts up",
    )
    # The route leads nowhere; Ray asks for it to learn the machine's own address.
    _network(
        host,
        f"ip link set lo up && ip addr add {host.address}/24 dev eth0 && ip link set eth0 up && "
        f"ip route add default via {laptop.address}",
    )


def _all_processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _space(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return ""

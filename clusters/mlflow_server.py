"""The MLflow server of a cluster. It runs on the head as long as Ray does; its database outlives the head.

    python clusters/mlflow_server.py start     no effect if it answers already
    python clusters/mlflow_server.py stop
    python clusters/mlflow_server.py status

The database is an SQLite file on the head's volume, copied to D2LS_STORAGE every ten minutes and at the end, and
fetched from there by a new head. Artifacts go to D2LS_STORAGE through the server, so nodes need no access of their own.
When Ray has ended (`ray down`) the server ends within a minute.

It is not a systemd unit: set-up must not need root, and without root the units of a user end with the last login.
"""

import argparse
import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

PORT = 5000
RAY_PORT = 6379
BACKUP_SECONDS = 600
WITHOUT_RAY_SECONDS = 45
START_SECONDS = 180


@dataclass(frozen=True)
class Server:
    """Locations of the server.

    Attributes:
        host: address to listen on.
        storage: URI of the cluster's storage.
        folder: folder on the head's volume.
    """

    host: str
    storage: str
    folder: Path

    @property
    def database(self) -> Path:
        """Path of the SQLite file."""
        return self.folder / "mlflow.db"

    @property
    def backup(self) -> str:
        """URI of its copy."""
        return f"{self.storage.rstrip('/')}/mlflow/mlflow.db"

    @property
    def pid_file(self) -> Path:
        """File with the process id of the keeper."""
        return self.folder / "keeper.pid"

    @property
    def log(self) -> Path:
        """Log of keeper and server."""
        return self.folder / "server.log"

    def command(self) -> list[str]:
        """Returns the command line of the server itself."""
        names = {"localhost", "127.0.0.1", own_address(), socket.gethostname(), socket.getfqdn()}
        return [
            sys.executable, "-m", "mlflow", "server", "--host", self.host, "--port", str(PORT), "--workers", "2",
            "--backend-store-uri", f"sqlite:///{self.database}",
            "--artifacts-destination", f"{self.storage.rstrip('/')}/mlflow/artifacts",
            # The match includes the port; requests through a proxy come without a port.
            "--allowed-hosts", ",".join(sorted(names | {f"{name}:*" for name in names})),
        ]  # fmt: skip


def own_address() -> str:
    """Returns the address of this machine, found as Ray finds it."""
    with socket.socket(type=socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("8.8.8.8", 80))
        return str(probe.getsockname()[0])
    return "127.0.0.1"


def answers() -> bool:
    """Returns whether a server answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def ray_runs() -> bool:
    """Returns whether the head's Ray listens."""
    for address in ("127.0.0.1", own_address()):
        with contextlib.suppress(OSError), socket.create_connection((address, RAY_PORT), timeout=2):
            return True
    return False


def start(server: Server) -> int:
    """Starts a keeper in the background and waits until the server answers."""
    if answers() and keeper(server):
        say(f"MLflow answers on port {PORT} already")
        return 0
    server.folder.mkdir(parents=True, exist_ok=True)
    with server.log.open("ab") as log:
        subprocess.Popen(
            [sys.executable, __file__, "keep", "--host", server.host, "--storage", server.storage,
             "--folder", str(server.folder)],
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if answers():
            say(f"MLflow answers on http://{own_address()}:{PORT}, artifacts in {server.storage}")
            return 0
        time.sleep(1)
    say(f"MLflow does not answer after {START_SECONDS} s; the end of {server.log}:")
    say("\n".join(server.log.read_text(errors="replace").splitlines()[-20:]))
    return 1


def stop(server: Server) -> int:
    """Ends the keeper, which ends the server and makes a last copy of the database."""
    pid = keeper(server)
    if pid is None:
        say("no MLflow server of this cluster runs here")
        return 0
    os.kill(pid, signal.SIGTERM)
    for _ in range(120):
        if keeper(server) is None:
            say(f"stopped; the database is in {server.backup}")
            return 0
        time.sleep(0.5)
    say(f"process {pid} does not end; see {server.log}")
    return 1


def keeper(server: Server) -> int | None:
    """Returns the process id of the keeper, None if it does not run."""
    try:
        pid = int(server.pid_file.read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if Path(__file__).name.encode() in command else None


def keep(server: Server) -> int:
    """Runs the server until SIGTERM or the end of Ray; restarts it if it dies."""
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.append(number))
    server.pid_file.write_text(str(os.getpid()))
    process = None
    copied = seen = time.monotonic()
    fetch(server)
    try:
        while not stopping:
            if process is None or process.poll() is not None:
                process = subprocess.Popen(server.command(), env=server_environment(), start_new_session=True)
            if ray_runs():
                seen = time.monotonic()
            elif time.monotonic() - seen > WITHOUT_RAY_SECONDS:
                break
            if time.monotonic() - copied > BACKUP_SECONDS:
                copy(server)
                copied = time.monotonic()
            time.sleep(2)
    finally:
        end(process)
        copy(server)
        server.pid_file.unlink(missing_ok=True)
    return 0


def server_environment() -> dict[str, str]:
    """Returns the environment of the server, without job workers, which no stage needs and which double its memory."""
    return {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


def end(process: "subprocess.Popen[bytes] | None") -> None:
    """Ends the server and its workers, which form a process group."""
    if process is None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)


def fetch(server: Server) -> None:
    """Fetches the database of an earlier head, unless there is one here."""
    from d2ls import storage

    if not server.database.exists() and storage.exists(server.backup):
        say(f"fetching {server.backup}")
        partial = server.database.with_suffix(".part")
        partial.write_bytes(storage.read_bytes(server.backup))
        partial.replace(server.database)


def copy(server: Server) -> None:
    """Copies a consistent snapshot of the database to the storage while it is in use."""
    from d2ls import storage
    from d2ls.errors import StorageError

    if not server.database.exists():
        return
    snapshot = server.folder / "snapshot.db"
    try:
        with (
            contextlib.closing(sqlite3.connect(server.database)) as source,
            contextlib.closing(sqlite3.connect(snapshot)) as target,
        ):
            source.backup(target)
        storage.upload(snapshot, server.backup)
    except (StorageError, sqlite3.Error) as error:  # the server must go on; the next copy may succeed
        say(f"copying the database failed: {error}")
    snapshot.unlink(missing_ok=True)


def say(text: str) -> None:
    """Prints without buffering, because the log is read while it grows."""
    print(text, flush=True)  # noqa: T201


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["start", "stop", "status", "keep"])
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on (default: all)")  # noqa: S104
    parser.add_argument("--storage", default=os.environ.get("D2LS_STORAGE"), help="default: D2LS_STORAGE")
    parser.add_argument("--folder", type=Path, default=Path.home() / ".d2ls-mlflow", help="for the database")
    options = parser.parse_args()
    if not options.storage:
        parser.error("give --storage, or set D2LS_STORAGE")
    server = Server(options.host, options.storage, options.folder)
    if options.what == "status":
        say("up" if answers() else "down")
        return 0 if answers() else 1
    return {"start": start, "stop": stop, "keep": keep}[options.what](server)


if __name__ == "__main__":
    sys.exit(main())

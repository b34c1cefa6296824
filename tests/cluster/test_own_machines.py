"""Three machines, started by `ray up`, used and stopped with the commands of docs/cluster/own_machines.md.

The tests of this file depend on each other and run in order; each block of the page runs unchanged on the laptop.
"""

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.cluster.estate import KEYS, own_machines, own_machines_file, store_environment
from tests.cluster.machines import BINARIES, ROOT, Machine, Machines, why_not
from tests.trees import TREES

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "-"),
]
PAGE = ROOT / "docs" / "cluster" / "own_machines.md"
QUIET = re.compile(r"^sshd: |^/usr/sbin/sshd |moto_server|^sleep 3600 $")
"""Processes that run on a machine with or without a cluster."""


def blocks() -> list[tuple[str, str]]:
    """Returns the page's blocks of commands: kind (`` or `tunnel`) and text."""
    return re.findall(r"^```bash ?(\w*)\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)


def block(word: str) -> str:
    """Returns the one block that contains a word."""
    (result,) = [text for _, text in blocks() if word in text]
    return result


EXPORTS = "\n".join(line for _, text in blocks() for line in text.splitlines() if line.startswith("export "))


class World:
    """The machines, with the actions of the laptop's user."""

    def __init__(self, estate: Machines, storage: str) -> None:
        self.estate, self.storage = estate, storage
        self.tunnels: list[subprocess.Popen[bytes]] = []

    def type(self, script: str, timeout: float = 1500) -> str:
        """Runs lines on the laptop; stops at the first line that fails."""
        started = time.monotonic()
        written = self.estate.laptop.shell(f"set -e\n{EXPORTS}\n{script}", timeout=timeout)
        print(
            f"--- {time.monotonic() - started:.0f} s\n{script.strip()}\n{_plain(written)[-4000:]}", flush=True
        )
        return _plain(written)

    def close_tunnels(self) -> None:
        """Ends the tunnels as Ctrl-C does: `ray` and its `ssh`, so that their other ends go as well."""
        for tunnel in self.tunnels:
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in [
                    *psutil.Process(tunnel.pid).children(recursive=True),
                    psutil.Process(tunnel.pid),
                ]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
            tunnel.wait()
        self.tunnels.clear()

    def open(self, script: str, url: str) -> None:
        """Opens a tunnel on the laptop and waits for the other end to answer."""
        line = self.estate.laptop.command(["env", f"--chdir={ROOT}", "bash", "-c", f"{EXPORTS}\n{script}"])
        self.tunnels.append(
            subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        )
        probe = (
            "import urllib.request, urllib.error\n"
            f"try: urllib.request.urlopen('{url}', timeout=5)\n"
            "except urllib.error.HTTPError: pass  # asks for the token: it answers"
        )
        wait_for(
            lambda: self.estate.laptop.run(["python", "-c", probe], check=False).returncode == 0, 300, url
        )

    def python(self, code: str) -> str:
        """Runs Python on the head, as a user who logged in there."""
        script = f"cd ~/d2ls && python - <<'CODE'\n{code}\nCODE"
        return self.estate.head.run(["bash", "-lc", script], timeout=300).stdout

    def read(self, path: str) -> str:
        """Reads a file of the cluster's storage, empty where there is none."""
        code = (
            f"from d2ls import storage\nuri = '{self.storage}/{path}'\n"
            "if storage.exists(uri): print(storage.read_bytes(uri).decode())"
        )
        return self.estate.head.run(
            ["python", "-c", code], environment=store_environment(self.estate), timeout=120
        ).stdout


def wait_for(true: Callable[[], bool], seconds: float, what: str) -> float:
    """Waits until something is true and returns how long that took."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        if true():
            return time.monotonic() - started
        time.sleep(2)
    raise AssertionError(f"after {seconds:g} s still not: {what}")


def running(machine: Machine) -> dict[int, str]:
    """Returns the processes of a machine that belong to a cluster."""
    result = {}
    for pid in machine.processes():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            if words and not QUIET.search(words):
                result[pid] = words.strip()
    return result


NOISE = re.compile(
    r"docker\.py|To ensure this mount|V+INFO|VWARN|WARNING util|worker processes have been started|"
    r"config-cache|node_provider\.py|cli_output_helpers|performance bottleneck|^\s*$"
)
"""Lines of Ray that are left out of the log."""


def _plain(text: str) -> str:
    """Removes colours, noise and the checkout's path from Ray's output."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).replace(f"{ROOT}/", "").splitlines()
    return "\n".join(line.rstrip()[:160] for line in lines if not NOISE.search(line))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[World]:
    with own_machines(tmp_path_factory.mktemp("cluster") / "machines") as (estate, storage):
        made = World(estate, storage)
        yield made
        made.close_tunnels()


def test_ray_up_brings_up_head_and_workers(world):
    said = world.type(block("ray up"))
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in said
    assert world.estate.head.shell("stat -c %a ~/.aws/credentials").strip() == "600"

    def all_there() -> bool:
        return "0.0/3.0 CPU" in world.type(block("ray status"))

    print(f"workers joined {wait_for(all_there, 600, 'three nodes'):.0f} s after the head")


def test_a_second_ray_up_changes_nothing_in_the_environment(world):
    stamp = "stat -c %Y ~/.d2ls-venv/d2ls-node; cat ~/.d2ls-env | sha256sum"
    before = world.estate.head.shell(stamp)
    edited = own_machines_file(world.estate, world.storage)
    (line,) = [text.split("- ", 1)[1] for text in edited.splitlines() if "set_up_node.sh" in text]
    said = world.estate.head.shell(line.split(" #")[0], timeout=120)
    assert "versions as pinned" in said
    assert world.estate.head.shell(stamp) == before


def test_the_token_keeps_strangers_out(world):
    address = f"{world.estate.head.address}:6379"
    stranger = world.estate.laptop.run(
        ["python", "-c", f"import ray; ray.init('{address}', log_to_driver=False)"],
        environment={"HOME": "/tmp", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}, check=False, timeout=120,
    )  # fmt: skip
    assert stranger.returncode != 0
    assert re.search("token|authenticat", stranger.stdout, flags=re.IGNORECASE)
    probe = f"import socket; socket.create_connection(('{world.estate.head.address}', 8265), timeout=3)"
    assert (
        world.estate.laptop.run(["python", "-c", probe], check=False).returncode != 0
    )  # the dashboard: loopback alone


def test_a_sweep_runs_over_the_machines(world):
    world.open(block("ray dashboard"), "http://127.0.0.1:8265/api/version")
    said = world.type(block("pipeline.sweep"))
    assert "succeeded" in said
    assert (
        json.loads(world.read("runs/first-sweep/sweep.json"))["recipe"]["output_dir"]
        == f"{world.storage}/runs"
    )


def test_own_data_on_the_head_become_shards_for_all(world):
    folder = world.estate.folder / "LoveDA"
    TREES["loveda"].build(folder)
    data = ROOT / "data"  # which the laptop sees, and the checkout does not
    existed = data.exists()
    data.mkdir(exist_ok=True)
    world.estate.laptop.shell(f"mount -t tmpfs data {data} && cp -r /run/machines/LoveDA {data}/")
    try:
        assert "succeeded" in world.type(block("pipeline.shard"))
    finally:
        world.estate.laptop.shell(f"umount {data}")
        if not existed:
            data.rmdir()
    assert json.loads(world.read("data/shards/loveda/card.json"))["splits"]["train"]


def test_mlflow_opens_through_the_tunnel_and_keeps_the_sweep(world):
    world.open(block("5000"), "http://127.0.0.1:5000/health")
    code = (
        "import mlflow, json; c = mlflow.MlflowClient('http://127.0.0.1:5000')\n"
        "runs = [r for e in c.search_experiments() for r in c.search_runs([e.experiment_id])]\n"
        "print(json.dumps([[r.info.status, r.data.tags.get('d2ls.name', '')] for r in runs]))\n"
        "print(c.get_model_version_by_alias('d2ls-demo', 'champion').version)"
    )
    runs, champion = world.estate.laptop.run(["python", "-c", code], timeout=120).stdout.splitlines()[-2:]
    print(runs)
    assert champion == "1"
    assert {status for status, _ in json.loads(runs)} == {"FINISHED"}
    assert len(json.loads(runs)) >= 1 + 2 + 1  # sweep, trials, final training
    assert "mlflow/artifacts" in world.python(
        "from d2ls import storage; import os\n"
        "print([f.path for f in storage.list_files(os.environ['D2LS_STORAGE'] + '/mlflow', recursive=True)][:5])"
    )


def test_mlflow_refuses_other_host_names(world):
    url = f"http://{world.estate.head.address}:5000/api/2.0/mlflow/experiments/get?experiment_id=0"
    code = (
        "import urllib.request, urllib.error\n"
        f"request = urllib.request.Request('{url}', headers={{'Host': 'evil.example'}})\n"
        "try: print(urllib.request.urlopen(request, timeout=20).status)\n"
        "except urllib.error.HTTPError as error: print(error.code)"
    )
    assert world.estate.laptop.run(["python", "-c", code]).stdout.strip() == "403"


def test_a_training_over_two_machines_survives_the_loss_of_one(world):
    name = "first-training"
    training = subprocess.Popen(
        world.estate.laptop.command(
            ["env", f"--chdir={ROOT}", "bash", "-c", f"{EXPORTS}\n{block('pipeline.train')}"]
        ),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
    )  # fmt: skip

    def epochs() -> list[dict[str, float]]:
        return [json.loads(line) for line in world.read(f"runs/{name}/history.jsonl").splitlines() if line]

    wait_for(lambda: len(epochs()) >= 2 or training.poll() is not None, 900, "two epochs")
    before = len(epochs())
    victims = [
        host
        for host in list(world.estate.hosts.values())[1:]
        if any("RayTrainWorker" in words for words in running(host).values())
    ]
    assert victims, "no training worker on a worker machine"
    victims[0].kill()
    print(f"{victims[0].name} killed after epoch {before} of 6")
    said = _plain(training.communicate(timeout=1500)[0])
    print(said[-4000:])
    assert training.returncode == 0
    assert before < 6
    assert [int(row["epoch"]) for row in epochs()] == [1, 2, 3, 4, 5, 6]
    del world.estate.hosts[victims[0].name]


def test_ray_down_leaves_nothing(world):
    world.close_tunnels()
    world.type(block("ray down"))
    hosts = list(world.estate.hosts.values())
    took = wait_for(lambda: not any(running(host) for host in hosts), 240, "no process of the cluster")
    print(f"nothing left {took:.0f} s after `ray down`")
    listed = world.estate.head.run(
        [
            "python",
            "-c",
            f"from d2ls import storage; print(storage.info('{world.storage}/mlflow/mlflow.db').size)",
        ],
        environment=store_environment(world.estate),
    ).stdout
    assert int(listed) > 100_000
    assert BINARIES.is_dir()

"""Two sweeps at once on one store and on a running Ray cluster without custom resources."""

import contextlib
import json
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.config.tracking import TrackingConfig
from pipeline.tracking import Store
from tests.mlflow_processes import free_port
from tests.tiny_sweeps import make_place, run, sweep, tracked, trials

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2000),  # several sweeps one after the other; a busy machine must not fail the test
]

CPUS = 2
SETTINGS = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else Ray turns 127.0.0.1 into the outer address
    "RAY_AUTH_MODE": "token",
    "PYTHONUNBUFFERED": "1",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Starts a Ray head on loopback and yields its address; ends it process by process."""
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    port = free_port()
    folder = tempfile.mkdtemp(prefix="d2ls-ray-", dir="/tmp")  # paths of Ray's sockets must be short
    ports = {name: free_port() for name in (
        "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port",
    )}  # fmt: skip
    with Path(folder, "head.log").open("w") as log:
        head = subprocess.Popen(
            [
                str(Path(sys.executable).with_name("ray")), "start", "--head", "--block",
                "--node-ip-address=127.0.0.1", f"--port={port}", f"--num-cpus={CPUS}", f"--temp-dir={folder}",
                "--dashboard-host=127.0.0.1", *(f"--{name}={number}" for name, number in ports.items()),
            ],
            stdout=log, stderr=log,
        )  # fmt: skip
    address = f"127.0.0.1:{port}"
    try:
        wait_for_head(head, Path(folder, "head.log"))
        alive = resources(address)
        assert alive["CPU"] == CPUS
        assert set(alive) <= {
            "CPU", "memory", "object_store_memory", "node:127.0.0.1", "node:__internal_head__"
        }  # fmt: skip
        yield address
        assert head.poll() is None, "a sweep ended a cluster that is not its own"
    finally:
        processes = []
        with contextlib.suppress(psutil.NoSuchProcess):
            processes = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=20)
        shutil.rmtree(folder, ignore_errors=True)


def wait_for_head(head: "subprocess.Popen[bytes]", log: Path, seconds: float = 240.0) -> None:
    """Waits until Ray reports a node: its port is open long before that."""
    deadline = time.monotonic() + seconds
    while "Ray runtime started" not in log.read_text():
        assert head.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def resources(address: str) -> dict[str, float]:
    """Returns the free resources of the cluster."""
    script = (
        "import json, sys, ray\n"
        "ray.init(address=sys.argv[1], logging_level='ERROR')\n"
        "print(json.dumps(ray.available_resources()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, address], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_two_sweeps_share_store_and_cluster(cluster: str, tmp_path: Path):
    place = make_place(tmp_path)
    shared = ["tiny.yaml", f"cluster.address={cluster}", "train.epochs=1", "sweep.final=false"]
    with (place / "baseline.log").open("w") as log:
        other = subprocess.Popen(
            sweep(
                *shared, "--name", "baseline",
                "sweep.space={model.architecture: {values: [d2ls, unet]}, model.stages: {values: [1]}}",
            ),
            cwd=place, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            said = run(
                place, *shared, "--name", "repeated", "--seeds", "2",
                "sweep.space={train.optimizer.lr: {values: [1e-2, 1e-8]}}",
            )  # fmt: skip
            assert other.wait(900) == 0, (place / "baseline.log").read_text()
        finally:
            other.kill()
            other.wait()

    repeated = trials(place, "repeated").values()
    scores = [item["score"] for item in repeated if item["values"].get("seed") == 1]
    assert len(repeated) == 3
    assert len(scores) == 1
    assert "the noise of" in said
    report = (place / "runs" / "repeated" / "report.md").read_text()
    best = max(item["score"] for item in repeated if "seed" not in item["values"])
    deviation = abs(best - scores[0]) / 2**0.5
    assert f"val/miou {(best + scores[0]) / 2:.4f} ± {deviation:.4f}" in report

    store = Store.open(TrackingConfig(), folder=place)
    for name, count in (("repeated", 3), ("baseline", 2)):
        parent = tracked(store, place, name)
        rows = store.children(parent.run_id)
        assert [parent.status, *(row.status for row in rows)] == ["FINISHED"] * (count + 1)
        assert len({row.name for row in rows}) == count, "a run is doubled"
    assert store.run(tracked(store, place, "repeated").run_id).metrics["repeats/deviation"] == pytest.approx(
        deviation
    )
    networks = {
        row.tags["architecture"]: row for row in store.children(tracked(store, place, "baseline").run_id)
    }
    assert networks["d2ls"].tags["stages"] == "1"
    assert networks["unet"].tags["stages"] == networks["unet"].tags["temperature"] == "-"
    assert "train/contrastive" in networks["d2ls"].metrics
    assert "train/contrastive" not in networks["unet"].metrics
    assert "val/miou" in networks["unet"].metrics

    deadline = time.monotonic() + 60
    while resources(cluster).get("CPU", 0.0) < CPUS:
        assert time.monotonic() < deadline, "workers are left on the cluster"

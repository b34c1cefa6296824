"""Set-up of the machines in the cluster tests: an object store on the head, the environment, edited files."""

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.cluster.machines import BINARIES, HOME, ROOT, Machine, Machines, machines

CLUSTER_FILE = ROOT / "clusters" / "own_machines.yaml"
BUCKET = "d2ls-test"
STORE_PORT = 9000
KEYS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "tell-nobody"}


def store_environment(estate: Machines) -> dict[str, str]:
    """Returns the variables by which S3 clients find the object store."""
    return {**KEYS, **store_place(estate)}


def store_place(estate: Machines) -> dict[str, str]:
    """Returns the variables with the location of the object store, without secrets."""
    return {"AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": f"http://{estate.head.address}:{STORE_PORT}"}


@contextlib.contextmanager
def object_store(estate: Machines, log: Path) -> Iterator[str]:
    """Runs an S3 server on the head, with a bucket; yields the URI of the cluster's storage."""
    head = estate.head
    with log.open("wb") as stream:
        server = subprocess.Popen(
            head.command([str(BINARIES / "moto_server"), "-H", head.address, "-p", str(STORE_PORT)]),
            stdout=stream, stderr=stream,
        )  # fmt: skip
    make = f"import boto3; boto3.client('s3').create_bucket(Bucket='{BUCKET}')"
    try:
        for _ in range(60):
            made = head.run(["python", "-c", make], environment=store_environment(estate), check=False)
            if made.returncode == 0:
                break
            time.sleep(1)
        else:
            raise AssertionError(f"no object store: {made.stdout}\n{log.read_text()}")
        yield f"s3://{BUCKET}/d2ls"
    finally:
        server.kill()
        server.wait()


@contextlib.contextmanager
def own_machines(folder: Path) -> Iterator[tuple[Machines, str]]:
    """Starts a laptop and three hosts in the state that docs/cluster/own_machines.md requires before `ray up`.

    Yields:
        The machines, and the URI of the storage that the edited file names. The edit is seen by the laptop alone.
    """
    with (
        machines(folder, ["head", "worker-1", "worker-2"]) as estate,
        object_store(estate, folder / "store.log") as storage,
    ):
        for host in estate.hosts.values():
            prepare(host)
        lines = "".join(f"{name.lower()} = {value}\n" for name, value in KEYS.items())
        (folder / "credentials").write_text(f"[default]\n{lines}")
        estate.laptop.shell("install -D -m 600 /run/machines/credentials ~/.aws/credentials")
        (folder / CLUSTER_FILE.name).write_text(own_machines_file(estate, storage))
        estate.laptop.shell(f"mount --bind /run/machines/{CLUSTER_FILE.name} {CLUSTER_FILE}")
        yield estate, storage


def prepare(machine: Machine) -> None:
    """Gives a machine the environment that a first set-up makes (7 GB, some minutes)."""
    source, target = BINARIES.parent, f"{HOME}/.d2ls-venv"
    machine.shell(
        f"mkdir {target} && ln -s {source}/* {target}/ && "
        f"cat {ROOT}/pyproject.toml {ROOT}/constraints.txt | sha256sum > {target}/d2ls-node"
    )


def own_machines_file(estate: Machines, storage: str) -> str:
    """Makes the edits of the page in clusters/own_machines.yaml; returns the text of the file."""
    text = CLUSTER_FILE.read_text()
    workers = ", ".join(host.address for host in list(estate.hosts.values())[1:])
    variables = " ".join(f"{key}={value}" for key, value in store_place(estate).items())
    edits = {
        "# ~/.aws/credentials:": "~/.aws/credentials:",
        "head_ip: 192.168.1.10": f"head_ip: {estate.head.address}",
        "worker_ips: [192.168.1.11, 192.168.1.12]": f"worker_ips: [{workers}]",
        "ssh_user: ubuntu": "ssh_user: root",
        "D2LS_STORAGE=s3://BUCKET/d2ls bash": f"{variables} D2LS_STORAGE={storage} bash",
        # All machines share two real CPUs: each declares one.
        "ray start --head": "ray start --head --num-cpus=1",
        "ray start --address": "ray start --num-cpus=1 --address",
    }
    for before, after in edits.items():
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    return text

"""Runs the scripts for the nodes of a cluster, one by one, on this machine."""

import importlib.util
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"clusters_{name}", ROOT / "clusters" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def fake_cache(folder: Path) -> None:
    """Makes a Hugging Face cache like that of a download: blobs, links to them, a name for the commit."""
    model = folder / "models--timm--tiny"
    (model / "blobs").mkdir(parents=True)
    (model / "snapshots" / "c0ffee").mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "blobs" / "abc").write_bytes(b"weights" * 1000)
    (model / "snapshots" / "c0ffee" / "model.safetensors").symlink_to("../../blobs/abc")
    (model / "refs" / "main").write_text("c0ffee")


def test_weights_go_to_the_storage_and_are_found_by_the_hubs_own_client_offline(tmp_path):
    weights = load("weights")
    source, storage, target = tmp_path / "a", str(tmp_path / "storage"), tmp_path / "b"
    fake_cache(source)
    assert weights.push(storage, source) == 2
    assert weights.push(storage, source) == 1  # names are written again, files are not
    assert weights.pull(storage, target) == 2
    assert weights.pull(storage, target) == 0
    code = (
        "from huggingface_hub import hf_hub_download as get\n"
        f"file = get('timm/tiny', 'model.safetensors', cache_dir={str(target)!r})\n"
        "print(open(file, 'rb').read() == b'weights' * 1000)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "True"


def test_weights_of_the_recipes_are_those_they_start_from():
    assert load("weights").backbones(["demo"]) == []
    assert load("weights").backbones(["demo", "loveda"]) == ["convnext_base.fb_in1k"]


def test_node_check_names_what_differs():
    check = load("check_node")
    pins = check.pinned((ROOT / "constraints.txt").read_text())
    assert set(check.COMPARED) <= set(pins)
    assert check.wrong_versions(pins) == []
    (line,) = check.wrong_versions({**pins, "ray": "1.0"})
    assert line.startswith("ray is 2.")
    assert "1.0" in line


@pytest.fixture
def server(tmp_path):
    module = load("mlflow_server")
    (tmp_path / "head").mkdir()
    return module, module.Server("127.0.0.1", str(tmp_path / "storage"), tmp_path / "head")


def test_database_survives_the_head(server, tmp_path):
    module, first = server
    with sqlite3.connect(first.database) as connection:
        connection.execute("create table runs (name text)")
        connection.execute("insert into runs values ('kept')")
    module.copy(first)
    second = module.Server("127.0.0.1", first.storage, tmp_path / "other")
    second.folder.mkdir()
    module.fetch(second)
    assert sqlite3.connect(second.database).execute("select name from runs").fetchall() == [("kept",)]


def test_a_database_that_is_there_is_not_overwritten(server):
    module, head = server
    sqlite3.connect(head.database).execute("create table a (b text)").connection.close()
    module.copy(head)
    sqlite3.connect(head.database).execute("create table newer (b text)").connection.close()
    module.fetch(head)
    names = sqlite3.connect(head.database).execute("select name from sqlite_master order by name").fetchall()
    assert names == [("a",), ("newer",)]


def test_a_failing_copy_does_not_end_the_server(server, capsys, tmp_path):
    module, head = server
    sqlite3.connect(head.database).execute("create table a (b text)").connection.close()
    (tmp_path / "storage").write_text("a file where a folder has to be")
    module.copy(head)
    assert "copying the database failed" in capsys.readouterr().out


def test_a_disk_that_is_full_does_not_end_the_server(server, capsys, monkeypatch):
    module, head = server
    head.database.touch()

    def full(file):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(module.sqlite3, "connect", full)
    module.copy(head)
    assert "copying the database failed: database or disk is full" in capsys.readouterr().out


def test_a_copy_that_takes_long_does_not_end_the_server(server, monkeypatch):
    """Ray runs for 2000 seconds; a copy takes 60, longer than the server stays without Ray."""
    module, head = server
    clock, copies = [0.0], []

    def wait(seconds):
        clock[0] += seconds

    def copy(server):
        copies.append(clock[0])
        wait(60)

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=wait))
    monkeypatch.setattr(module.signal, "signal", lambda *_: None)
    monkeypatch.setattr(module.Server, "command", lambda self: ["sleep", "60"])
    monkeypatch.setattr(module, "ray_runs", lambda: clock[0] < 2000)
    monkeypatch.setattr(module, "copy", copy)
    assert module.keep(head) == 0
    assert len(copies) == 4, copies
    assert 2000 < copies[-1] < 2000 + module.WITHOUT_RAY_SECONDS + 5, "and it ends soon after Ray"


def test_server_names_its_hosts_and_keeps_artifacts_in_the_storage(server):
    module, head = server
    command = head.command()
    hosts = command[command.index("--allowed-hosts") + 1].split(",")
    assert {"localhost", "localhost:*", module.own_address()} <= set(hosts)
    assert "*" not in hosts
    assert command[command.index("--artifacts-destination") + 1] == f"{head.storage}/mlflow/artifacts"


def test_a_foreign_process_is_not_taken_for_the_keeper(server):
    module, head = server
    assert module.keeper(head) is None
    head.pid_file.write_text(str(os.getpid()))
    assert module.keeper(head) is None
    assert module.stop(head) == 0


@pytest.mark.parametrize("name", ["weights", "mlflow_server"])
def test_help_teaches_by_example(name):
    script = ROOT / "clusters" / f"{name}.py"
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=True)
    assert f"python clusters/{name}.py" in done.stdout

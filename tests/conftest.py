"""Settings of all tests: one thread, one Ray per process, and no process or file left behind.

`dev.py` runs pytest in two processes. All tests of a file run in one of them and share its fixtures. The slow tests,
which start servers or their own Ray, run one after the other in one process.
"""

import multiprocessing.util
import os
import shutil
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch and NumPy are imported
os.environ.setdefault(
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0"
)  # read when ray is imported: stay on 127.0.0.1
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is imported

import psutil
import pytest
from hypothesis import HealthCheck, settings

from d2ls.scratch import remove_abandoned

settings.register_profile(
    "d2ls", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)  # a busy machine must not fail a test
settings.load_profile("d2ls")

SERVICES = (
    "multiprocessing.resource_tracker",
    "multiprocessing.forkserver",
    "_inductor/compile_worker",  # compiles for GPUs
)


def pytest_addoption(parser):
    parser.addoption(
        "--budget", type=float, metavar="MINUTES", help="skip the tests that would start after this time"
    )


def pytest_configure(config):
    config.stash[DEADLINE] = time.monotonic() + 60 * (config.getoption("budget") or float("inf"))


DEADLINE = pytest.StashKey[float]()


def pytest_collection_modifyitems(items):
    """Sorts the files that use Ray to the front, because they take longest."""
    with_ray = {item.path for item in items if "ray_cluster" in item.fixturenames}
    items.sort(key=lambda item: item.path not in with_ray)


def pytest_runtest_setup(item):
    if time.monotonic() > item.config.stash[DEADLINE]:
        pytest.skip("the time budget is spent")


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left(request, tmp_path_factory):
    """Gives the tests a temporary folder, and fails if a process or a file is left behind.

    All processes that tests start inherit TMPDIR, which identifies them. The path is short, because Ray's sockets are
    deep below it and the path of a Unix socket has at most 107 characters.
    """
    multiprocessing.util.get_temp_dir()  # stays until this process ends, so it is made elsewhere
    folder = Path(tempfile.mkdtemp(prefix="d2-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        patch.setattr(tempfile, "tempdir", str(folder))
        yield folder
    psutil.wait_procs(started_with(folder), timeout=10)
    processes = started_with(folder)
    commands = [" ".join(process.cmdline()) for process in processes]
    for process in processes:
        process.kill()
    remove_abandoned(folder)  # a Ray that ends late writes once more into its folder
    # A process that slow tests kill leaves the temporary files of libraries; nothing can prevent that.
    theirs = ("pymp-", "tmp") if "not slow" not in request.config.option.markexpr else ("pymp-",)
    files = sorted(path.name for path in folder.iterdir() if not path.name.startswith(theirs))
    shutil.rmtree(folder, ignore_errors=True)
    assert not commands, "processes are left"
    assert not files, "temporary files are left"


def started_with(folder):
    """Returns the processes of the tests at any depth, without helpers that end with this one."""
    result = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("TMPDIR") == str(folder)
            if ours and not any(word in " ".join(process.cmdline()) for word in SERVICES):
                result.append(process)
        except psutil.Error:
            continue  # it has ended, or belongs to another user
    return result


@pytest.fixture(scope="session")
def session_ray(nothing_is_left):
    """Starts a local Ray once, with a dashboard, which sweeps need."""
    from pipeline.cluster import connect
    from pipeline.config.train import ClusterConfig

    with connect(ClusterConfig(address="local"), dashboard=True) as cluster:
        names = ("RAY_ADDRESS", "RAY_GCS_SERVER_PORT")
        yield cluster, {name: os.environ.pop(name) for name in names}  # for the tests that ask for it


@pytest.fixture
def ray_cluster(session_ray, monkeypatch):
    """Provides the Ray of this process; code called by the test and child processes use it."""
    cluster, variables = session_ray
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return cluster


@pytest.fixture
def closed_folder(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of folders that cannot be listed, also not by root."""
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    return "closed"

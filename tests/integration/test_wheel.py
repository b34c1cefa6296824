"""The wheel outside of the checkout: the command `d2ls`, and recipes that are found by name."""

import os
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


def run(*command: str | Path, folder: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> Path:
    """Programs of a fresh environment with the wheel; the libraries are those of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in files.stdout.splitlines():
        if name.split("/")[0] in (
            "d2ls",
            "sharding",
            "pipeline",
            "recipes",
            "pyproject.toml",
            "README.md",
            "LICENSE",
        ):
            target = folder / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, folder / "source", folder=folder)
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    run(*pip, "--python", python, "install", "--no-deps", wheel, folder=folder)
    packages = run(python, "-c", "import site; print(site.getsitepackages()[0])", folder=folder).strip()
    # Only the folder: its .pth files, such as that of an editable install, are not read.
    Path(packages, "libraries.pth").write_text("\n".join(site.getsitepackages()))
    return python.parent


def test_the_demo_recipe_is_found_without_the_checkout(programs, tmp_path):
    assert "Plan: 4 trial(s)" in run(programs / "d2ls", "sweep", "--plan", folder=tmp_path)
    assert "Plan: 4 trial(s)" in run(programs / "python", "-m", "pipeline.sweep", "--plan", folder=tmp_path)
    words = ("loveda", "sweep=@recipes/sweeps/ablation.yaml", "--plan")
    assert "Plan:" in run(programs / "d2ls", "sweep", *words, "cluster.cpus_per_worker=1", folder=tmp_path)
    assert not [*tmp_path.iterdir()], "a plan leaves nothing"
    where = run(programs / "python", "-c", "import pipeline; print(pipeline.__file__)", folder=tmp_path)
    assert str(programs.parent) in where


def test_help_teaches_the_order_of_work(programs, tmp_path):
    assert "in the order of work" in run(programs / "d2ls", "--help", folder=tmp_path)

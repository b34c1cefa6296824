#!/usr/bin/env python3
"""Makes the environment on first use and runs the common tasks in it. Needs only Python 3.11 to 3.13 and pip.

    python3 dev.py demo               set up, then run the demo (`python -m pipeline.sweep`)
    python3 dev.py test               set up, then run all checks for a commit: some minutes
    python3 dev.py test all           also real kills, servers, a browser, S3 and serving: half an hour
    python3 dev.py test slow          only what `all` adds
    python3 dev.py test unit          a part of it: lint, types, imports, unit, numerics, distributed, integration
    python3 dev.py test --cov         arguments for pytest: with the coverage of branches
    python3 dev.py faults             long fault injections
    python3 dev.py cluster            hosts in network namespaces, brought up by `ray up`
    python3 dev.py gpu                tests and benchmarks that need a CUDA device
    python3 dev.py served             a registered model in a fresh environment with only its own requirements
    python3 dev.py docs               the documentation as a site in site/; broken links are errors
    python3 dev.py bench [NAME]       benchmarks
    python3 dev.py setup              only the environment
    python3 dev.py run COMMAND ...    a command inside the environment, e.g. `dev.py run python`

The environment is the folder .venv beside this file, with the versions of constraints.txt; D2LS_VENV names another one.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = Path(os.environ.get("D2LS_VENV", ROOT / ".venv")).absolute()
STAMP = ENVIRONMENT / "d2ls-setup"
QUICK = ["pytest", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder",
         "-m", "not slow and not faults and not cluster and not gpu"]  # fmt: skip
SLOW = ["pytest", "-m", "slow and not faults and not cluster and not gpu"]
STATIC = {
    "lint": [["ruff", "check", "."], ["ruff", "format", "--check", "."]],
    "types": [["mypy"]],
    "imports": [["lint-imports"]],
}
FOLDERS = {name: [[*QUICK, f"tests/{name}"]] for name in ("unit", "numerics", "distributed", "integration")}
COMMIT = [*(line for lines in STATIC.values() for line in lines), QUICK]
TIERS = {**STATIC, **FOLDERS, "commit": COMMIT, "slow": [SLOW], "all": [*COMMIT, SLOW]}
FAULTS = ("tests/faults", "tests/integration/test_train.py")


def main() -> int:
    """Parses the command line, makes the environment where needed, runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what",
        choices=["demo", "test", "faults", "cluster", "gpu", "served", "docs", "bench", "setup", "run"],
    )
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="handed on")
    arguments = parser.parse_args()
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        print(f"Python 3.11 to 3.13 is needed, this is {sys.version.split()[0]}; try python3.12 dev.py ...")
        return 2
    set_up()
    return run_all(commands(arguments.what, arguments.rest))


def commands(what: str, rest: list[str]) -> list[list[str]]:
    """Returns the command lines that a word stands for."""
    if what == "setup":
        return []
    if what == "run":
        return [rest]
    if what == "demo":
        return [["python", "-m", "pipeline.sweep", *rest]]
    if what == "faults":
        page = ["-p", "tests.fault_table", "--fault-table", "docs/training-faults.md"]
        # A process each: the tests of one file share a Ray, those of the others need their own.
        return [["pytest", *page, "-m", "faults or survives", path, *rest] for path in FAULTS]
    if what == "cluster":
        return [["pytest", "-m", what, f"tests/{what}", *rest]]
    if what == "gpu":
        benchmarks = [["python", "-m", f"benchmarks.{name}"] for name in ("gpu_network", "gpu_loader")]
        return [["pytest", "-m", what, "tests/gpu", *rest], *([] if rest else benchmarks)]
    if what == "served":
        return [["python", "-m", "tests.served", *rest]]
    if what == "docs":
        return [["mkdocs", "build", "--strict", *rest]]
    if what == "bench":
        names = rest or sorted(
            path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem[0] != "_"
        )
        return [["python", "-m", f"benchmarks.{name}"] for name in names]
    chosen = [word for word in rest if word in TIERS] or ["commit"]
    extra = [word for word in rest if word not in TIERS]
    lines = [line for tier in chosen for line in TIERS[tier]]
    return [[*line, *(extra if line[0] == "pytest" else [])] for line in lines]


def run_all(lines: list[list[str]]) -> int:
    """Runs command lines in the environment, all of them, and returns the first failure."""
    binaries = ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin")
    path = f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}"
    shown = str(ENVIRONMENT.relative_to(ROOT) if ENVIRONMENT.is_relative_to(ROOT) else ENVIRONMENT)
    environment = {**os.environ, "VIRTUAL_ENV": str(ENVIRONMENT), "PATH": path, "D2LS_ENVIRONMENT": shown}
    failed = 0
    for line in lines:
        print(f"$ {' '.join(line)}", flush=True)
        program = binaries / line[0]
        status = subprocess.run(
            [str(program if program.exists() else line[0]), *line[1:]], cwd=ROOT, env=environment, check=False
        ).returncode
        failed = failed or status
    return failed


def set_up() -> None:
    """Makes or refreshes the environment; does nothing if it matches pyproject.toml and constraints.txt."""
    state = fingerprint()
    if STAMP.is_file() and STAMP.read_text() == state:
        return
    print(f"Setting up {ENVIRONMENT} (some minutes and about 7 GB, once)", flush=True)
    python = ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists():
        venv.create(ENVIRONMENT, with_pip=True, symlinks=os.name != "nt")
    pip(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv")
    pip(
        python, "-m", "uv", "pip", "install", "--python", str(python), "--compile-bytecode",
        "--constraint", "constraints.txt", "--editable", ".[dev]",
    )  # fmt: skip
    pip(python, "-m", "compileall", "-q", "d2ls", "sharding", "pipeline")
    STAMP.write_text(state)


def pip(python: Path, *words: str) -> None:
    """Runs one installation step; exits with its output if it fails."""
    if subprocess.run([str(python), *words], cwd=ROOT, check=False).returncode:
        sys.exit(
            f"setting up failed in: {' '.join(words)}\nFix the cause shown above and call again; it continues."
        )


def fingerprint() -> str:
    """Returns a digest of the files that the environment must match."""
    content = b"".join((ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))
    return f"{sys.version_info[:2]} {hashlib.sha256(content).hexdigest()}"


if __name__ == "__main__":
    sys.exit(main())

"""Checks a node of the cluster: pinned versions, and whether PyTorch can use the GPU of the machine, if it has one.

python clusters/check_node.py
"""

import importlib.metadata
import re
import shutil
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
COMPARED = ("ray", "torch", "mlflow", "timm", "pyarrow", "webdataset")


def pinned(text: str) -> dict[str, str]:
    """Reads `name==version` lines."""
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)", text, flags=re.MULTILINE))


def wrong_versions(expected: dict[str, str]) -> list[str]:
    """Returns messages on packages that are missing or differ from the pinned versions."""
    installed = {}
    for name in COMPARED:
        try:
            installed[name] = importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            installed[name] = "missing"
    return [
        f"{name} is {installed[name]}, constraints.txt has {expected[name]}"
        for name in COMPARED
        if installed[name] != expected[name]
    ]


def wrong_gpu() -> list[str]:
    """Returns a message if there is an NVIDIA driver but PyTorch sees no GPU."""
    if shutil.which("nvidia-smi") is None:
        return []
    import torch

    if torch.cuda.is_available():
        return []
    return [
        f"nvidia-smi is there, but PyTorch {torch.__version__} (CUDA {torch.version.cuda}) sees no GPU: the driver is "
        "too old, or a CPU build is installed"
    ]


def main() -> int:
    """Prints problems; returns exit status 1 if there are any."""
    wrong = wrong_versions(pinned((PROJECT / "constraints.txt").read_text())) + wrong_gpu()
    for line in wrong:
        print(f"node check: {line}", file=sys.stderr)  # noqa: T201
    if not wrong:
        print(f"node check: python {sys.version.split()[0]}, versions as pinned")  # noqa: T201
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())

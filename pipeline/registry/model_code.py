"""The code in a registered model: the part of `d2ls` that it needs, as a package with a unique name.

MLflow's `code_paths` would put `d2ls` itself on the path, so models with different code could not be loaded together.
"""

import ast
import hashlib
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import d2ls
from d2ls.bundle import ModelInfo

ROOT = Path(d2ls.__file__).parent
NEEDED = ("d2ls.inference", "d2ls.models.saving")
REQUIREMENTS = ("mlflow", "numpy", "pillow", "safetensors", "timm", "torch", "torchvision")
_IMPORT = re.compile(r"^(\s*(?:from|import)\s+)d2ls\b", flags=re.MULTILINE)


def write_package(folder: Path, *, root: Path = ROOT) -> str:
    """Copies `NEEDED` and what it imports into `folder/d2ls_<digest>` with renamed imports; returns that name.

    Args:
        folder: created if it does not exist.
        root: the package to copy from; tests pass a changed copy.
    """
    files = {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in modules(root)}
    digest = hashlib.sha256()
    for name, text in sorted(files.items()):
        digest.update(f"{name}\0{text}\0".encode())
    package = f"d2ls_{digest.hexdigest()[:12]}"
    for name, text in files.items():
        target = folder / package / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_IMPORT.sub(rf"\g<1>{package}", text), encoding="utf-8")
    return package


def modules(root: Path = ROOT) -> list[Path]:
    """Returns the sorted files of `NEEDED` and of all modules of the package that they import, also in functions."""
    files: set[Path] = set()
    waiting = [path for name in NEEDED for path in _files(root, name)]
    while waiting:
        path = waiting.pop()
        if path in files:
            continue
        files.add(path)
        for name in _imports(ast.parse(path.read_text(encoding="utf-8"))):
            waiting.extend(_files(root, name))
    return sorted(files)


def requirements(info: ModelInfo) -> list[str]:
    """Returns the pinned distributions that the model needs, without local version parts (`+cpu`).

    Args:
        info: the model; one of segmentation_models_pytorch needs that library too.
    """
    names = list(REQUIREMENTS)
    if info.config.get("architecture", "d2ls") != "d2ls":
        names.append("segmentation-models-pytorch")
    return [f"{name}=={metadata.version(name).split('+')[0]}" for name in names]


def _imports(tree: ast.AST) -> Iterator[str]:
    """Yields the modules of the package that a module imports, without those for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "d2ls":
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "d2ls")
        yield from _imports(node)


def _files(root: Path, name: str) -> Iterator[Path]:
    """Yields the files that run when a dotted name is imported: its own and those of the packages above it."""
    here = root
    yield here / "__init__.py"
    for part in name.split(".")[1:]:
        if (here / f"{part}.py").is_file():
            yield here / f"{part}.py"
        here /= part
        if (here / "__init__.py").is_file():
            yield here / "__init__.py"

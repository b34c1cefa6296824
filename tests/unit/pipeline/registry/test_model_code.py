"""The code that travels with a model: complete, renamed, named by its content."""

import ast
import shutil
from pathlib import Path

import numpy as np

from d2ls.bundle import ModelInfo
from d2ls.labels import ClassTable
from pipeline.registry import model_code
from pipeline.tracking.figure_samples import choose

INFO = ModelInfo(
    config={"backbone": "convnext_atto"}, normalization={}, classes=ClassTable.create(["a"], [(1, 2, 3)]),
    bands=("red",), dtype="uint8", window=64,
)  # fmt: skip


def test_the_package_holds_what_it_imports_and_not_the_rest(tmp_path: Path) -> None:
    name = model_code.write_package(tmp_path)
    files = {path.relative_to(tmp_path / name).as_posix() for path in (tmp_path / name).rglob("*.py")}
    assert {"__init__.py", "bundle.py", "models/build.py", "inference/__init__.py", "labels.py"} <= files
    assert not any(file.startswith(("loader/", "data/", "training/")) for file in files)
    for file in files:
        for node in ast.walk(ast.parse((tmp_path / name / file).read_text())):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] != "d2ls", file


def test_the_name_follows_the_content(tmp_path: Path) -> None:
    first, again = model_code.write_package(tmp_path / "a"), model_code.write_package(tmp_path / "b")
    assert first == again
    changed = tmp_path / "d2ls"
    shutil.copytree(model_code.ROOT, changed)
    with (changed / "models" / "d2ls.py").open("a") as stream:
        stream.write("\nCHANGED = True\n")
    assert model_code.write_package(tmp_path / "c", root=changed) != first
    with (changed / "losses.py").open("a") as stream:
        stream.write("\n# not part of the package\n")
    assert model_code.write_package(tmp_path / "d", root=changed) == model_code.write_package(
        tmp_path / "c", root=changed
    )


def test_requirements_are_few_and_free_of_local_versions() -> None:
    names = [line.split("==")[0] for line in model_code.requirements(INFO)]
    assert names == list(model_code.REQUIREMENTS)
    assert not any("+" in line for line in model_code.requirements(INFO))


def test_shown_samples_cover_the_classes() -> None:
    pixels = np.array([[100, 0, 0], [90, 10, 0], [100, 0, 0], [0, 0, 50], [0, 100, 0]])
    assert set(choose(pixels, 3)) >= {3}
    assert (pixels[choose(pixels, 3)].sum(axis=0) > 0).all()
    assert sorted(choose(pixels, 99)) == [0, 1, 2, 3, 4]
    assert choose(pixels, 3) == choose(pixels, 3)

"""Unit tests of a package import only that package and those below it, also through test helpers."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = {"d2ls": {"d2ls"}, "sharding": {"sharding", "d2ls"}}
OURS = {"d2ls", "sharding", "pipeline", "ray", "mlflow"}


def imported(file):
    """Names of the modules that a file imports."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def reached(file, seen):
    """Returns the top-level packages that a test file imports, directly or through modules of `tests`."""
    for name in imported(file):
        helper = ROOT.joinpath(*name.split(".")).with_suffix(".py")
        if name.startswith("tests.") and helper.exists() and helper not in seen:
            seen.add(helper)
            yield from reached(helper, seen)
        yield name.split(".")[0]


@pytest.mark.parametrize("package", ALLOWED)
def test_unit_tests_import_no_higher_package(package):
    files = sorted((ROOT / "tests" / "unit" / package).rglob("test_*.py"))
    assert files
    result = {
        str(file.relative_to(ROOT)): OURS & {*reached(file, set())} - ALLOWED[package] for file in files
    }
    assert not {file: names for file, names in result.items() if names}

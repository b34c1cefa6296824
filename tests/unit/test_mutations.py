"""The faults of tests/mutations.py can still be inserted."""

import ast

import pytest

from tests.mutations import MUTATIONS, ROOT, TABLE


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_a_fault_has_its_place_and_its_tests(mutation):
    text = mutation.applied((ROOT / mutation.file).read_text(encoding="utf-8"))
    ast.parse(text)
    assert all((ROOT / path.split("::")[0]).exists() for path in mutation.tests.split())


def test_there_are_forty_different_ones():
    assert len({(item.file, item.old, item.new) for item in MUTATIONS}) == 40


def test_the_table_names_files_and_tests_that_exist():
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")][1:]
    assert len(rows) == 40
    files = {item.what: item.file for item in MUTATIONS}
    for file, what, _, noticed_by in rows:
        path, name = noticed_by.split("::")
        assert (file, what) == (files[what], what)
        assert f"def {name}(" in (ROOT / "tests" / path).read_text(encoding="utf-8"), noticed_by

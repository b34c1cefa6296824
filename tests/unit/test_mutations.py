"""The faults of tests/mutations.py can still be inserted."""

import ast

import pytest

from tests.mutations import MUTATIONS, ROOT


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_a_fault_has_its_place_and_its_tests(mutation):
    text = mutation.applied((ROOT / mutation.file).read_text(encoding="utf-8"))
    ast.parse(text)
    assert all((ROOT / path.split("::")[0]).exists() for path in mutation.tests.split())


def test_there_are_forty_different_ones():
    assert len({(item.file, item.old, item.new) for item in MUTATIONS}) == 40

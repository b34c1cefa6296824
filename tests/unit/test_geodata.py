import pytest

from tests.geodata import DOCUMENT, all_cases, with_table


@pytest.mark.parametrize("row", all_cases(), ids=lambda row: f"{row.command}: {row.input}")
def test_an_input_gets_its_answer(row, tmp_path):
    row.check(tmp_path)


def test_the_table_in_the_documentation_is_that_of_the_rows():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert with_table(text) == text, "write it anew: python -m tests.geodata"

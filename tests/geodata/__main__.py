"""`python -m tests.geodata`: writes the table of inputs and answers into docs/data.md."""

from tests.geodata import DOCUMENT, with_table

DOCUMENT.write_text(with_table(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")

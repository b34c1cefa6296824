"""The versions of constraints.txt run on every Python that pyproject.toml allows."""

import re
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet

PINS = Path(__file__).resolve().parents[2] / "constraints.txt"
OLDEST = "3.11.0"


def test_every_pinned_version_runs_on_the_oldest_python():
    too_new = []
    for name in re.findall(r"^([\w.-]+)==", PINS.read_text(), flags=re.MULTILINE):
        try:
            needs = metadata(name).get("Requires-Python")
        except PackageNotFoundError:  # of another platform
            continue
        if needs and OLDEST not in SpecifierSet(needs):
            too_new.append(f"{name} needs Python {needs}")
    assert not too_new

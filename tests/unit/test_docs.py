"""The documentation agrees with the code."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import Recipe, load_recipe
from pipeline.config.base import known_keys

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
MESSAGES = re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def source():
    """Returns all source text, with string literals that are split over lines joined."""
    text = "".join(
        path.read_text()
        for folder in ("d2ls", "sharding", "pipeline")
        for path in (ROOT / folder).rglob("*.py")
    )
    return re.sub(r"[\"']\s*\n\s*f?[\"']", "", text)


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_of_the_troubleshooting_page_are_those_of_the_code(source, message):
    assert message in source


def test_the_site_builds_without_a_broken_link_and_names_all_keys(tmp_path):
    site = tmp_path / "site"
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    assert "d2ls predict runs/town" in (site / "own_images" / "index.html").read_text()
    keys = (site / "reference" / "recipe" / "index.html").read_text()
    assert "train.optimizer.weight_decay" in keys
    assert "class_balance" not in keys  # the old name is refused


def test_each_recipe_key_has_a_meaning_a_type_and_a_default_that_people_can_read():
    table = runpy.run_path(str(ROOT / "docs" / "site.py"))["recipe_keys"]()
    rows = [re.split(r" ?\| ?", line)[1:-1] for line in table.splitlines() if line.startswith("| `")]
    assert {len(row) for row in rows} == {4}
    assert [key for key, *rest in rows if not all(rest)] == []
    assert [word for word in ("Optional", "function", "Undefined", "``", "()", "Axis") if word in table] == []
    keys = {row[0].strip("`"): row[1:3] for row in rows}
    assert set(known_keys(Recipe)) <= set(keys)
    assert keys["data.custom.classes[].label_values"] == ["list of int or 3 x int", "unset"]
    assert keys["data.tiling.<name>.size"] == ["int, ≥ 32", "unset"]
    assert keys["sweep.space.<name>.log"] == ["bool", "`false`"]
    assert keys["train.clip_norm"] == ["float, > 0", "`1.0`"]


def test_the_recipe_of_the_readme_is_a_whole_recipe(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "my.yaml").write_text(text)
    recipe = load_recipe(tmp_path / "my.yaml")
    assert recipe.name == "town"

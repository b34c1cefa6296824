"""The MLflow UI in a headless Chromium: run list, comparison, curves, figures, registered model."""

import importlib.util
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.tracked_runs import fill_store

SCRIPT = Path(__file__).parents[2] / "docs" / "take_screenshots.py"


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="needs chromium and chromedriver (apt-get install chromium chromium-driver)",
)
def test_a_person_finds_runs_curves_figures_and_the_champion(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("take_screenshots", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    store, _ = fill_store(tmp_path)
    pictures = script.take(store, tmp_path / "pictures", settle=0.5)
    assert len(pictures) == 8
    for file in pictures:
        assert file.stat().st_size < 300_000
        with Image.open(file) as picture:
            assert picture.size[0] > 1000
            assert len(picture.convert("RGB").resize((64, 64)).getcolors(4096)) > 10, file.name

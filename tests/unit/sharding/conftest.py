"""Raw scenes for the tests of the parts of sharding."""

import pytest

from tests.trees import LOVEDA_RAW, blocks, save, texture

SCENES = {"Train": 6, "Val": 3}


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
    """Scenes of 64 x 64 pixels in LoveDA's folders, all classes in each; read only."""
    root = tmp_path_factory.mktemp("raw")
    parts = [part for part, count in SCENES.items() for _ in range(count)]
    for number, part in enumerate(parts):
        folder = root / part / ("Rural" if number % 2 else "Urban")
        save(folder / "images_png" / f"{number}.png", texture(number, 64, 64))
        save(folder / "masks_png" / f"{number}.png", blocks(number, 64, 64, LOVEDA_RAW))
    return root

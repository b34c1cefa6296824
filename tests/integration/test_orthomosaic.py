"""One orthomosaic and its polygons, from the recipe of the documentation to verified shards."""

import runpy
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from rasterio.features import rasterize

from d2ls.labels import IGNORE
from d2ls.shards import ShardSet
from d2ls.shards.codecs import decode_mask
from pipeline.config.recipe import load_recipe
from pipeline.shard import main
from sharding.raster.vectors import read_features
from sharding.verify import verify

ROOT = Path(__file__).resolve().parents[2]
SIZE, PIXEL = 384, 0.5
CLASSES = {
    "house": 1,
    "hall": 1,
    "road": 2,
    "water": 3,
    "bare": 4,
    "forest": 5,
    "field": 6,
    "unclear": IGNORE,
}


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    folder = tmp_path_factory.mktemp("town")
    runpy.run_path(str(ROOT / "examples" / "orthomosaic.py"))["write_orthomosaic"](
        folder, size=SIZE, scene=128
    )
    return folder


def overrides(town, uri, **more):
    values = {
        "data.root": town, "shards.uri": uri, "data.custom.split.blocks.size_m": 64,
        "data.custom.split.blocks.buffer_m": 8, "data.tiling.default.size": 128, **more,
    }  # fmt: skip
    return [f"{key}={value}" for key, value in values.items()]


def whole(town):
    """The labels of the whole image by `rasterio.features.rasterize`, and its grid."""
    land = read_features(town / "labels.gpkg", layer="land", columns=["kind"])
    trees = read_features(town / "labels.gpkg", layer="trees")
    area = read_features(town / "area.gpkg")
    shapes = [*land.geometries, *shapely.buffer(trees.geometries, 3)]
    values = [*(CLASSES[kind] for kind in land.fields["kind"]), *[5] * len(trees)]
    with rasterio.open(town / "ortho.tif") as image:
        grid = {"out_shape": image.shape, "transform": image.transform, "dtype": np.uint8}
    burned = rasterize(zip(shapes, values, strict=True), fill=0, **grid)
    return np.where(rasterize(area.geometries, **grid) == 1, burned, np.uint8(IGNORE))


def test_an_orthomosaic_and_its_polygons_become_shards(town, tmp_path, capsys):
    uri = tmp_path / "shards"
    arguments = [str(ROOT / "recipes" / "own_polygons.yaml"), *overrides(town, uri), "--no-ray"]
    assert main([*arguments, "--check"]) == 0
    shown = capsys.readouterr().out
    assert "geometries were invalid (Self-intersection 2) and were repaired" in shown
    assert "is 8.00 m apart" in shown
    assert not uri.exists()
    assert main(arguments) == 0
    card = verify(str(uri))
    shards = ShardSet.open(str(uri))
    result = np.full((SIZE, SIZE), IGNORE, np.uint8)
    owner = np.full((SIZE, SIZE), "", object)
    for split in card.splits:
        for row in shards.rows(split).to_pylist():
            tar = (uri / row["shard"]).read_bytes()
            ids = decode_mask(
                tar[row["mask_offset"] : row["mask_offset"] + row["mask_length"]],
                (row["height"], row["width"]),
            )
            top, left = (int(part[1:]) for part in row["key"].split("_")[-2:])
            ids = ids[: SIZE - top, : SIZE - left]
            labelled = ids != IGNORE
            result[top : top + ids.shape[0], left : left + ids.shape[1]][labelled] = ids[labelled]
            owner[top : top + ids.shape[0], left : left + ids.shape[1]][labelled] = split
    labelled = result != IGNORE
    np.testing.assert_array_equal(result[labelled], whole(town)[labelled])
    assert Counter(owner[labelled]) == {name: sum(split.class_pixels) for name, split in card.splits.items()}
    trained, tested = np.argwhere(owner == "train"), np.argwhere(owner == "test")
    nearest = min(float(np.linalg.norm(trained - place, axis=1).min()) for place in tested[::7])
    assert nearest * PIXEL >= 8
    assert (uri / "preview" / "splits.png").is_file()


def test_the_example_is_complete(town):
    main = runpy.run_path(str(ROOT / "examples" / "orthomosaic.py"))
    assert {path.name for path in town.iterdir()} == {"ortho.tif", "labels.gpkg", "area.gpkg"}
    recipe = load_recipe(str(ROOT / "recipes" / "own_polygons.yaml"), [])
    names = {item.name for item in recipe.data.custom.classes}
    kinds = set(main["KINDS"]) - {""}
    assert kinds - names == {"house"}  # and hall: both are buildings

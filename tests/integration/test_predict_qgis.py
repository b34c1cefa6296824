"""From an orthomosaic to files for QGIS: the command `pipeline.predict` with a real network."""

import csv
import json

import numpy as np
import pytest
import rasterio
import rasterio.features
import shapely

from pipeline.predict import main
from sharding.raster.vectors import read_features, write_features
from tests.inference_stubs import tiny_bundle
from tests.shards import CLASSES

SIDE, METRES = 300, 0.5
UTM = rasterio.CRS.from_epsg(32632)
TRANSFORM = rasterio.Affine(METRES, 0, 400_000, 0, -METRES, 5_000_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An orthomosaic, its four tiles, zones, an evaluation report, and a model."""
    folder = tmp_path_factory.mktemp("ortho")
    cells = np.random.default_rng(0).integers(0, 256, (3, SIDE // 30, SIDE // 30)).astype(np.uint8)
    pixels = cells.repeat(30, axis=1).repeat(30, axis=2)
    _write(folder / "ortho.tif", pixels, TRANSFORM)
    for row in (0, 150):
        for column in (0, 150):
            place = TRANSFORM @ rasterio.Affine.translation(column, row)
            _write(
                folder / "tiles" / f"{row}-{column}.tif",
                pixels[:, row : row + 150, column : column + 150],
                place,
            )
    west = shapely.box(400_000, 4_999_850, 400_075, 5_000_000)
    write_features(
        folder / "zones.gpkg", "zones", np.array([west]), {"name": np.array(["west"], object)}, UTM
    )
    confusion = np.diag([900] * CLASSES.num_classes) + 20
    report = {"confusion": confusion.tolist(), "classes": CLASSES.to_json()}
    (folder / "report.json").write_text(json.dumps([report]))
    tiny_bundle(folder / "model", CLASSES, window=128)
    return folder


def _write(path, pixels, transform) -> None:
    path.parent.mkdir(exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", height=pixels.shape[1], width=pixels.shape[2], count=3, dtype="uint8", crs=UTM,
        transform=transform,
    ) as file:  # fmt: skip
        file.write(pixels)


def _predict(folder, source, target, *words) -> np.ndarray:
    assert main([str(folder / "model"), str(folder / source), str(folder / target), *words]) == 0
    with rasterio.open(folder / target) as file:
        return file.read(1)


def test_one_command_gives_map_polygons_style_and_hectares(folder, capfd) -> None:
    words = ["--polygons", "--style", "--min-area-m2", "10", "--zones", str(folder / "zones.gpkg")]
    words += ["--zone-field", "name", "--evaluation-report", str(folder / "report.json")]
    labels = _predict(folder, "ortho.tif", "map.tif", *words)
    polygons = read_features(
        folder / "map.gpkg", columns=("class", "class_id", "area_m2", "mean_probability")
    )
    pairs = zip(polygons.geometries, polygons.fields["class_id"].tolist(), strict=True)
    burned = rasterio.features.rasterize(pairs, labels.shape, fill=255, transform=TRANSFORM, dtype="uint8")
    np.testing.assert_array_equal(burned, labels)
    assert polygons.fields["area_m2"].min() >= 10
    assert (polygons.fields["mean_probability"] > 1 / CLASSES.num_classes - 0.01).all()
    with (folder / "map.areas.csv").open() as file:
        rows = list(csv.DictReader(file))
    hectares = sum(float(row["hectares"]) for row in rows if not row["zone"])
    adjusted = sum(float(row["adjusted_hectares"] or 0) for row in rows)
    assert hectares == pytest.approx(adjusted) == pytest.approx((SIDE * METRES) ** 2 / 10_000)
    assert sum(float(row["hectares"]) for row in rows if row["zone"] == "west") == pytest.approx(hectares / 2)
    assert "adjusted hectares" in (folder / "map.areas.md").read_text()
    assert "paletteEntry" in (folder / "map.qml").read_text()
    _predict(folder, "ortho.tif", "map.tif", *words)
    assert "finished before, left as it is" in capfd.readouterr().err


def test_tiles_give_the_map_of_the_whole(folder) -> None:
    whole = _predict(folder, "ortho.tif", "whole.tif")
    np.testing.assert_array_equal(_predict(folder, "tiles", "joined.tif", "--mosaic"), whole)


def test_the_area_of_interest_alone_is_mapped(folder) -> None:
    labels = _predict(folder, "ortho.tif", "part.tif", "--area", str(folder / "zones.gpkg"))
    np.testing.assert_array_equal(labels != 255, np.broadcast_to(np.arange(SIDE) < 150, labels.shape))

"""Maps as other tools see them: gdalinfo, which does not use rasterio's GDAL."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import rasterio

from d2ls.inference import Predictor
from pipeline.prediction.map_scene import map_scene
from pipeline.prediction.request import MapOptions
from tests.inference_stubs import LocalStub, model_info

pytestmark = pytest.mark.skipif(
    shutil.which("gdalinfo") is None, reason="gdalinfo (gdal-bin) is not installed"
)

ROTATED = rasterio.Affine(0.4, 0.3, 500_100.25, 0.3, -0.4, 5_000_000.75)


def gdalinfo(path: Path) -> dict:
    result = subprocess.run(["gdalinfo", "-json", str(path)], capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


def test_a_rotated_sixteen_bit_scene_with_an_empty_edge(tmp_path) -> None:
    array = np.random.default_rng(0).integers(1, 10_000, (4, 700, 900)).astype(np.uint16)
    array[:, :, :250] = 0
    with rasterio.open(
        tmp_path / "scene.tif", "w", driver="GTiff", height=700, width=900, count=4, dtype="uint16", nodata=0,
        crs="EPSG:32632", transform=ROTATED,
    ) as file:  # fmt: skip
        file.write(array)
    info = model_info(bands=4, dtype="uint16", window=256)
    predictor = Predictor(LocalStub(bands=4, max_value=65535.0), info)
    options = MapOptions(probabilities=True)
    map_scene(predictor, str(tmp_path / "scene.tif"), str(tmp_path / "map.tif"), options, digest="d")

    scene, result = gdalinfo(tmp_path / "scene.tif"), gdalinfo(tmp_path / "map.tif")
    assert result["geoTransform"] == scene["geoTransform"]
    assert result["coordinateSystem"]["wkt"] == scene["coordinateSystem"]["wkt"]
    assert result["cornerCoordinates"] == scene["cornerCoordinates"]
    assert result["size"] == [900, 700]
    assert result["metadata"]["IMAGE_STRUCTURE"]["LAYOUT"] == "COG"
    band = result["bands"][0]
    assert (band["type"], band["noDataValue"], band["block"]) == ("Byte", 255, [512, 512])
    assert band["overviews"]
    assert band["colorInterpretation"] == "Palette"
    assert band["categories"] == list(info.classes.names)
    for color, entry in zip(info.classes.palette, band["colorTable"]["entries"], strict=False):
        assert entry == [*color, 255]
    assert band["colorTable"]["entries"][255][3] == 0

    probabilities = gdalinfo(tmp_path / "map.probabilities.tif")
    assert probabilities["geoTransform"] == scene["geoTransform"]
    assert [item["description"] for item in probabilities["bands"]] == list(info.classes.names)
    assert {item["scale"] for item in probabilities["bands"]} == {1 / 250}


def test_neither_coordinates_nor_pixels_with_data(tmp_path) -> None:
    profile = {"driver": "GTiff", "height": 60, "width": 80, "count": 3, "dtype": "uint8", "nodata": 0}
    with (
        pytest.warns(rasterio.errors.NotGeoreferencedWarning),
        rasterio.open(tmp_path / "scene.tif", "w", **profile) as file,
    ):
        file.write(np.zeros((3, 60, 80), np.uint8))
    predictor = Predictor(LocalStub(), model_info())
    map_scene(predictor, str(tmp_path / "scene.tif"), str(tmp_path / "map.tif"), MapOptions(), digest="d")
    result = gdalinfo(tmp_path / "map.tif")
    assert "coordinateSystem" not in result
    assert "geoTransform" not in result
    assert result["bands"][0]["noDataValue"] == 255

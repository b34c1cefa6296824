"""Tiles become one map without seams."""

import os
import re

import numpy as np
import pytest
import rasterio
import rasterio.shutil

from d2ls.errors import ConfigError, DataError
from d2ls.inference import Predictor
from pipeline.prediction.inputs import list_jobs
from pipeline.prediction.map_scene import map_scene
from pipeline.prediction.mosaic import mosaic_job
from pipeline.prediction.request import MapOptions
from sharding.raster.scene import open_scene
from tests.inference_stubs import LocalStub, model_info

X, Y, SIDE = 400_000, 5_000_000, 0.5


def pixels(height=90, width=110):
    return np.random.default_rng(0).integers(1, 256, (3, height, width)).astype(np.uint8)


def tile(path, array, row=0, column=0, crs="EPSG:32632", side=SIDE, **profile):
    transform = rasterio.Affine(side, 0, X + column * SIDE, 0, -side, Y - row * SIDE)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", height=array.shape[1], width=array.shape[2], count=len(array), dtype=array.dtype,
        crs=crs, transform=transform, **profile,
    ) as file:  # fmt: skip
        file.write(array)
    return path


def quarters(folder, array, **profile):
    tile(folder / "a.tif", array[:, :40, :50], **profile)
    tile(folder / "b.tif", array[:, :40, 50:], 0, 50, **profile)
    tile(folder / "c.tif", array[:, 40:, :50], 40, 0, **profile)
    tile(folder / "d.tif", array[:, 40:, 50:], 40, 50, **profile)
    return folder


def run(source, target):
    return map_scene(
        Predictor(LocalStub(bands=3), model_info()), str(source), str(target), MapOptions(), digest="d"
    )


def read(path):
    with rasterio.open(path) as file:
        return file.read(1), file.transform


@pytest.mark.parametrize("profile", [{}, {"nodata": 0}])
def test_tiles_give_the_map_of_the_whole(tmp_path, profile) -> None:
    array = pixels()
    run(tile(tmp_path / "whole.tif", array, **profile), tmp_path / "whole-map.tif")
    job = mosaic_job(str(quarters(tmp_path / "tiles", array, **profile)), str(tmp_path / "map.tif"))
    run(*job)
    labels, transform = read(tmp_path / "map.tif")
    expected, place = read(tmp_path / "whole-map.tif")
    np.testing.assert_array_equal(labels, expected)
    assert transform == place


@pytest.mark.parametrize("profile", [{}, {"nodata": 0}])
def test_nothing_is_known_between_the_tiles(tmp_path, profile) -> None:
    tiles = quarters(tmp_path / "tiles", pixels(), **profile)
    (tiles / "a.tif").unlink()
    run(*mosaic_job(str(tiles), str(tmp_path / "map.tif")))
    labels, _ = read(tmp_path / "map.tif")
    expected = np.zeros(labels.shape, bool)
    expected[:40, :50] = True
    np.testing.assert_array_equal(labels == 255, expected)


def test_the_same_command_goes_on_and_a_changed_tile_is_noticed(tmp_path) -> None:
    array = pixels()
    tiles = quarters(tmp_path, array)
    job = mosaic_job(str(tiles), str(tmp_path / "map.tif"))
    run(*job)
    assert mosaic_job(str(tiles), str(tmp_path / "map.tif")) == job
    assert run(*job).skipped
    tile(tmp_path / "d.tif", 255 - array[:, 40:, 50:], 40, 50)
    os.utime(tmp_path / "d.tif", ns=(1, 10**9))
    report = run(*mosaic_job(str(tiles), str(tmp_path / "map.tif")))
    assert not report.skipped
    assert [name for name, _ in list_jobs(str(tmp_path), str(tmp_path / "maps"))] == [
        str(tmp_path / f"{name}.tif") for name in "abcd"
    ]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            {"crs": "EPSG:32633"},
            r"lie in different UTM zones; .*gdalwarp -t_srs EPSG:32632 -tr 0\.5 0\.5 -tap .*b\.tif",
        ),
        ({"crs": "EPSG:4326"}, "have different CRS"),
        ({"side": 0.4}, "its pixels do not lie on the grid of"),
        ({"column": 50.4}, r"do not lie on the grid of .*gdalwarp -tr 0\.5 0\.5 -tap"),
        ({"nodata": 0}, "differs from .* in which pixels hold no data"),
        ({"array": pixels()[:1]}, "a mosaic is of tiles of one kind"),
        ({"array": pixels().astype(np.uint16)}, "a mosaic is of tiles of one kind"),
        ({"crs": None}, "has no georeference or no CRS"),
    ],
)
def test_tiles_that_do_not_fit_are_refused(tmp_path, second, message) -> None:
    tile(tmp_path / "a.tif", pixels())
    tile(tmp_path / "b.tif", **({"array": pixels(), "column": 110} | second))
    with pytest.raises(DataError, match=message):
        mosaic_job(str(tmp_path), str(tmp_path / "maps" / "map.tif"))
    assert not (tmp_path / "maps").exists()


def test_files_of_the_user_stay(tmp_path) -> None:
    tiles = quarters(tmp_path / "tiles", pixels())
    mine = tmp_path / "map.mosaic.vrt"
    mine.write_text("mine")
    with pytest.raises(ConfigError, match=r"map\.mosaic\.vrt: exists and is not of this program"):
        mosaic_job(str(tiles), str(tmp_path / "map.tif"))
    assert mine.read_text() == "mine"
    with pytest.raises(ConfigError, match="the map would replace a tile"):
        mosaic_job(str(tiles), str(tiles / "a.tif"))
    with pytest.raises(ConfigError, match=r"a mosaic gives one map; name it as OUTPUT"):
        mosaic_job(str(tiles), str(tmp_path / "maps"))
    with pytest.raises(DataError, match="no image here"):
        mosaic_job(str(tmp_path / "nothing"), str(tmp_path / "m.tif"))
    with pytest.raises(ConfigError, match="INPUT and OUTPUT are local"):
        mosaic_job("s3://bucket/tiles", str(tmp_path / "m.tif"))


@pytest.mark.parametrize("kind", ["mask", "alpha", "mask and nodata"])
def test_pixels_without_data_do_not_hide_those_of_an_overlapping_tile(tmp_path, kind) -> None:
    array = pixels()
    right = array[:, :, 40:].copy()
    right[:, :, :20] = 9  # the border of a turned image, as it is often stored
    mask = np.full((90, 70), 255, np.uint8)
    mask[:, :20] = 0
    for name, part, column, there in (
        ("a", array[:, :, :70], 0, np.full_like(mask, 255)),
        ("b", right, 40, mask),
    ):
        if kind == "alpha":
            tile(tmp_path / "tiles" / f"{name}.tif", np.concatenate([part, there[None]]), 0, column,
                 photometric="RGB", alpha="yes")  # fmt: skip
            continue
        nodata = {"nodata": 0} if "nodata" in kind else {}
        path = tile(tmp_path / "tiles" / f"{name}.tif", part, 0, column, **nodata)
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
            file.write_mask(there)
    joined, _ = mosaic_job(str(tmp_path / "tiles"), str(tmp_path / "map.tif"))
    with open_scene(joined) as scene:
        seen, valid = scene.read((0, 90), (0, 110), (0, 1, 2))
    np.testing.assert_array_equal(seen, array.transpose(1, 2, 0))
    assert valid.all()


def test_names_scales_and_nodata_of_bands_are_carried(tmp_path) -> None:
    def named(path, column, names, scale=1.0):
        with rasterio.open(tile(path, pixels(), 0, column), "r+") as file:
            file.descriptions, file.scales = names, (scale,) * 3

    named(tmp_path / "a.tif", 0, ("blue", "green", "red"))
    named(tmp_path / "b.tif", 110, ("blue", "green", "red"))
    run(*mosaic_job(str(tmp_path), str(tmp_path / "maps" / "map.tif")))
    run(tmp_path / "a.tif", tmp_path / "maps" / "one.tif")
    together, alone = read(tmp_path / "maps" / "map.tif")[0], read(tmp_path / "maps" / "one.tif")[0]
    np.testing.assert_array_equal(together[:, :90], alone[:, :90])
    for names, scale in ((("red", "green", "blue"), 1.0), (("blue", "green", "red"), 0.1)):
        named(tmp_path / "b.tif", 110, names, scale)
        with pytest.raises(DataError, match="a mosaic is of tiles of one kind"):
            mosaic_job(str(tmp_path), str(tmp_path / "maps" / "map.tif"))


def test_each_band_has_its_own_nodata(tmp_path) -> None:
    array = pixels()
    array[:, :10] = np.array([1, 2, 3])[:, None, None]
    for number, name in enumerate("ab"):
        part = tile(tmp_path / f"part-{name}.tif", array, 0, 110 * number)
        rasterio.shutil.copy(part, tmp_path / f"{name}.vrt", driver="VRT")
        text = (tmp_path / f"{name}.vrt").read_text()
        for band in (1, 2, 3):
            text = re.sub(
                f'(<VRTRasterBand [^>]*band="{band}"[^>]*>)', rf"\1<NoDataValue>{band}</NoDataValue>", text
            )
        (tmp_path / f"{name}.vrt").write_text(text)
    joined, _ = mosaic_job(str(tmp_path / "*.vrt"), str(tmp_path / "maps" / "map.tif"))
    with open_scene(joined) as scene:
        valid = scene.read((0, 90), (0, 220), (0, 1, 2))[1]
    assert not valid[:10].any()
    assert valid[10:].mean() > 0.99


def test_the_folder_of_the_map_may_be_a_link(tmp_path) -> None:
    tiles = quarters(tmp_path / "tiles", pixels())
    (tmp_path / "far" / "away" / "maps").mkdir(parents=True)
    (tmp_path / "maps").symlink_to(tmp_path / "far" / "away" / "maps")
    assert not run(*mosaic_job(str(tiles), str(tmp_path / "maps" / "map.tif"))).skipped

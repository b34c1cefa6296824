import numpy as np
import pytest
import rasterio
from PIL import Image
from pyarrow import fs
from rasterio.crs import CRS

from d2ls import storage
from d2ls.errors import DataError
from sharding.raster.base import Reading
from sharding.raster.scene import open_scene

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

NORTH_UP = rasterio.Affine(0.5, 0, 100.25, 0, -0.5, 2000.75)
ROTATED = rasterio.Affine(0.4, 0.3, 100.25, 0.3, -0.4, 2000.75)
UTM = CRS.from_epsg(32632)


def scene_file(path, pixels, **profile):
    count, height, width = pixels.shape
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=count, dtype=pixels.dtype, **profile
    ) as file:
        file.write(pixels)
    return path


def test_a_scene_tells_bands_mask_and_ground_distance(tmp_path) -> None:
    pixels = np.random.default_rng(0).integers(1, 255, (4, 40, 50)).astype(np.uint8)
    pixels[:, :10] = 0
    pixels[0, 20:] = 0
    path = scene_file(tmp_path / "s.tif", pixels, crs=UTM, transform=ROTATED, photometric="RGB", alpha="yes")
    with open_scene(path) as scene:
        assert (scene.count, scene.alpha) == (4, 3)
        assert scene.band_names == ("red", "green", "blue", "alpha")
        assert scene.pixel_metres == pytest.approx(0.5)
        result, valid = scene.read((5, 15), (0, 50), (2, 0))
        np.testing.assert_array_equal(result, pixels[[2, 0], 5:15].transpose(1, 2, 0))
        np.testing.assert_array_equal(valid, pixels[3, 5:15] > 0)
        assert scene.read((5, 15), (0, 50), (3, 0))[1].all()


def test_only_the_wanted_bands_say_where_data_is(tmp_path) -> None:
    pixels = np.ones((2, 4, 4), np.uint16)
    pixels[0, :2] = 0
    path = scene_file(tmp_path / "s.tif", pixels, nodata=0)
    with open_scene(path) as scene:
        assert scene.pixel_metres is None
        assert not scene.read((0, 2), (0, 4), (0,))[1].any()
        assert scene.read((0, 2), (0, 4), (0, 1))[1].all()


def test_degrees_become_metres(tmp_path) -> None:
    at_sixty = rasterio.Affine(1e-5, 0, 10, 0, -1e-5, 60)
    path = scene_file(
        tmp_path / "s.tif", np.ones((1, 4, 4), np.uint8), crs=CRS.from_epsg(4326), transform=at_sixty
    )
    with open_scene(path) as scene:
        assert scene.pixel_metres == pytest.approx(1.1132 * 0.5**0.5, rel=1e-3)


def test_resampling_reads_the_same_ground(tmp_path) -> None:
    ramp = np.tile(np.arange(0, 200, 2, dtype=np.uint8), (60, 1))[None]
    path = scene_file(tmp_path / "s.tif", ramp, crs=UTM, transform=NORTH_UP)
    with open_scene(path) as scene:
        whole, _ = scene.read((0, 120), (0, 200), (0,), (120, 200))
        part, _ = scene.read((30, 60), (80, 160), (0,), (120, 200))
    np.testing.assert_allclose(part.astype(int), whole[30:60, 80:160].astype(int), atol=1)
    expected = (np.arange(200) + 0.5) / 2 * 2 - 1
    np.testing.assert_allclose(whole[50, 5:-5, 0], expected[5:-5], atol=1.01)


def test_a_transparent_png_has_pixels_without_data(tmp_path) -> None:
    pixels = np.full((9, 8, 4), 200, np.uint8)
    pixels[:3, :, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "s.png")
    with open_scene(tmp_path / "s.png") as scene:
        assert (scene.count, scene.alpha) == (4, 3)
        _, valid = scene.read((0, 9), (0, 8), (0, 1, 2))
        assert valid.sum() == 6 * 8
        assert scene.read((0, 9), (0, 8), (3, 0))[1] is None


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.tif", None, "no such file"),
        ("empty.tif", b"", "empty"),
        ("bad.tif", b"II*\0 this is no TIFF", "not a readable TIFF"),
        ("bad.png", b"\x89PNG\r\n\x1a\n....", "not a readable image"),
        ("text.txt", b"hello", "format '.txt'"),
    ],
)
def test_what_is_no_image_is_named(tmp_path, name, content, words) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        open_scene(tmp_path / name)


def test_floating_point_pixels_are_nan_where_a_band_holds_no_data(tmp_path) -> None:
    pixels = np.arange(12, dtype=np.int16).reshape(2, 2, 3) - 6
    with open_scene(scene_file(tmp_path / "s.tif", pixels, nodata=-6)) as scene:
        read, valid = scene.read((0, 2), (0, 3), (0, 1))
        assert (scene.dtype, read.dtype) == ("float32", np.float32)
        expected = pixels.transpose(1, 2, 0).astype(np.float32)
        expected[0, 0, 0] = np.nan
        np.testing.assert_array_equal(read, expected)
        assert valid.all()
        assert not scene.read((0, 1), (0, 1), (0,))[1].any()


def test_other_pixel_types_are_refused(tmp_path) -> None:
    path = scene_file(tmp_path / "s.tif", np.ones((1, 4, 4), np.complex64))
    with pytest.raises(DataError, match="complex64, which is not supported"):
        open_scene(path)


def test_a_truncated_tiff_fails_where_it_is_read(tmp_path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (1, 600, 600)).astype(np.uint8)
    path = scene_file(
        tmp_path / "s.tif", pixels, tiled=True, blockxsize=256, blockysize=256, compress="deflate"
    )
    path.write_bytes(path.read_bytes()[:200_000])
    with open_scene(path) as scene, pytest.raises(DataError, match="rows 500 to 600"):
        scene.read((500, 600), (500, 600), (0,))


def test_a_remote_tiff_is_read_by_windows_where_it_lies(tmp_path, monkeypatch) -> None:
    pixels = np.random.default_rng(0).integers(1, 255, (3, 900, 700)).astype(np.uint8)
    (tmp_path / "bucket").mkdir()
    path = scene_file(tmp_path / "bucket" / "s.tif", pixels, crs=UTM, transform=NORTH_UP, tiled=True)
    local = storage.resolve
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr(
        storage, "resolve", lambda uri: (store, uri[5:]) if str(uri).startswith("s3:") else local(uri)
    )
    monkeypatch.setattr(storage, "read_bytes", None)
    with open_scene("s3://bucket/s.tif") as scene, open_scene(path) as here:
        assert scene.georeference == here.georeference
        np.testing.assert_array_equal(
            scene.read((300, 500), (20, 90), (0, 2))[0], here.read((300, 500), (20, 90), (0, 2))[0]
        )
    with pytest.raises(DataError, match=r"s3://bucket/none\.tif: no such file"):
        open_scene("s3://bucket/none.tif")


@pytest.mark.parametrize("suffix", ["tif", "png"])
@pytest.mark.parametrize("factor", [0.6, 1.7])
def test_resampling_mixes_no_nodata_value_into_others(tmp_path, suffix, factor) -> None:
    pixels = np.full((3, 60, 80), 200, np.uint8)
    pixels[:, :, :31] = 7
    path = tmp_path / f"s.{suffix}"
    if suffix == "tif":
        scene_file(path, pixels)
    else:
        Image.fromarray(pixels.transpose(1, 2, 0)).save(path)
    grid = (round(60 * factor), round(80 * factor))
    with open_scene(path, Reading(nodata=7)) as scene:
        result, valid = scene.read((0, grid[0]), (0, grid[1]), (0, 1, 2), grid)
    assert set(np.unique(result[valid])) == {200}
    assert valid.mean() == pytest.approx(49 / 80, abs=0.02)

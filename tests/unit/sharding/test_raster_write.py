import json

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.crs import CRS

from d2ls.errors import ConfigError, DataError, StorageError
from d2ls.labels import ClassTable
from sharding import raster_write
from sharding.raster_parts import Parts
from sharding.raster_scene import Georeference, open_scene
from sharding.raster_write import Layout, quantize, read_tags, write_labels, write_probabilities

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

CLASSES = ClassTable.create(["soil & sand", "water", "road"], [(200, 180, 120), (0, 0, 255), (90, 90, 90)])
NORTH_UP = rasterio.Affine(0.5, 0, 100.25, 0, -0.5, 2000.75)
ROTATED = rasterio.Affine(0.4, 0.3, 100.25, 0.3, -0.4, 2000.75)
UTM = CRS.from_epsg(32632)


def labels(height=700, width=1100, seed=0):
    ids = np.random.default_rng(seed).integers(0, 3, (height, width)).astype(np.uint8)
    ids[:50, :70] = 255
    return ids


def pieces(array, step=97):
    height = array.shape[-2]
    return ((top, array[..., top : top + step, :]) for top in range(0, height, step))


def layout(crs=UTM, transform=NORTH_UP, height=700, width=1100):
    return Layout(height, width, Georeference(crs, transform), {"d2ls_plan": "abc"})


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        (UTM, NORTH_UP),
        (UTM, ROTATED),
        (None, NORTH_UP),
        (None, rasterio.Affine.identity()),
        (CRS.from_epsg(4326), NORTH_UP),
    ],
)
def test_a_label_map_is_cloud_optimised_and_keeps_its_place(tmp_path, crs, transform) -> None:
    ids = labels()
    write_labels(tmp_path / "map.tif", pieces(ids), layout(crs, transform), CLASSES)
    with rasterio.open(tmp_path / "map.tif") as file:
        np.testing.assert_array_equal(file.read(1), ids)
        assert file.crs == crs
        assert file.transform == transform
        assert file.nodata == 255
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.overviews(1)
        assert file.colorinterp[0].name == "palette"
        assert file.colormap(1)[1] == (0, 0, 255, 255)
        assert file.colormap(1)[255][3] == 0
        assert ClassTable.from_json(json.loads(file.tags()["classes"])) == CLASSES
    assert read_tags(tmp_path / "map.tif")["d2ls_plan"] == "abc"
    assert "<Category>soil &amp; sand</Category>" in (tmp_path / "map.tif.aux.xml").read_text()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["map.tif", "map.tif.aux.xml"]


def test_overviews_hold_class_ids_alone(tmp_path) -> None:
    write_labels(tmp_path / "map.tif", pieces(labels()), layout(), CLASSES)
    with rasterio.open(tmp_path / "map.tif", overview_level=0) as small:
        assert set(np.unique(small.read(1))) <= {0, 1, 2, 255}


def test_a_png_holds_ids_and_shows_colours(tmp_path) -> None:
    ids = labels(60, 80)
    ids[:20] = 255
    write_labels(tmp_path / "map.png", pieces(ids, 13), layout(height=60, width=80), CLASSES)
    with Image.open(tmp_path / "map.png") as image:
        np.testing.assert_array_equal(np.asarray(image), ids)
        shown = np.asarray(image.convert("RGBA"))
    np.testing.assert_array_equal(
        shown[..., :3][ids == 1], np.broadcast_to((0, 0, 255), ((ids == 1).sum(), 3))
    )
    assert (shown[ids == 255, 3] == 0).all()
    assert read_tags(tmp_path / "map.png")["d2ls_plan"] == "abc"


def test_probabilities_are_named_scaled_and_nodata_aware(tmp_path) -> None:
    ids = labels(60, 80)
    values = np.random.default_rng(1).dirichlet((1, 1, 1), (60, 80)).astype(np.float32).transpose(2, 0, 1)
    steps = quantize(values, ids)
    write_probabilities(tmp_path / "p.tif", pieces(steps, 17), layout(height=60, width=80), CLASSES)
    with rasterio.open(tmp_path / "p.tif") as file:
        assert file.descriptions == CLASSES.names
        assert file.nodata == 255
        found = file.read(masked=True) * file.scales[0]
        assert (found.mask == (ids == 255)).all()
        np.testing.assert_allclose(found.data[:, ids != 255], values[:, ids != 255], atol=0.00201)


def test_what_cannot_be_written_leaves_the_old_map_and_no_rest(tmp_path, monkeypatch) -> None:
    target = tmp_path / "map.tif"
    write_labels(target, pieces(labels()), layout(), CLASSES)
    before = target.read_bytes()
    with pytest.raises(StorageError, match="rows came"):
        write_labels(target, pieces(labels()[:300]), layout(), CLASSES)
    monkeypatch.setattr(raster_write, "_checksum", lambda _: 1)
    with pytest.raises(StorageError, match="does not read back"):
        write_labels(target, pieces(labels(seed=1)), layout(), CLASSES)
    assert target.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["map.tif", "map.tif.aux.xml"]


def test_an_unknown_suffix_and_a_huge_png_are_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"not '\.gif'"):
        write_labels(tmp_path / "map.gif", pieces(labels()), layout(), CLASSES)
    with pytest.raises(ConfigError, match="too much for a PNG"):
        write_labels(tmp_path / "map.png", pieces(labels()), layout(height=30000, width=30000), CLASSES)


def test_parts_are_kept_for_the_same_plan_alone(tmp_path) -> None:
    uri, bands = str(tmp_path / "map.tif.parts"), [(0, 30), (30, 50), (50, 70)]
    parts = Parts(uri, {"model": "a"}, {"labels": 1, "probabilities": 3}, 40, bands)
    ids, steps = labels(70, 40), np.random.default_rng(0).integers(0, 250, (3, 70, 40)).astype(np.uint8)
    for index, (top, bottom) in enumerate(bands[:2]):
        parts.write(index, labels=ids[top:bottom], probabilities=steps[:, top:bottom])
    parts.write(2, labels=ids[50:])
    again = Parts(uri, {"model": "a"}, {"labels": 1, "probabilities": 3}, 40, bands)
    assert again.finished() == 2
    again.write(2, probabilities=steps[:, 50:])
    assert again.finished() == 3
    np.testing.assert_array_equal(np.concatenate([b for _, b in again.rows("labels")]), ids)
    np.testing.assert_array_equal(np.concatenate([b for _, b in again.rows("probabilities")], axis=1), steps)
    assert Parts(uri, {"model": "b"}, {"labels": 1}, 40, bands).finished() == 0
    again.remove()
    assert not (tmp_path / "map.tif.parts").exists()


def test_a_damaged_part_is_named(tmp_path) -> None:
    parts = Parts(str(tmp_path / "p"), {}, {"labels": 1}, 40, [(0, 30)])
    assert not (tmp_path / "p").exists()
    parts.write(0, labels=labels(30, 40))
    (tmp_path / "p" / "000000.labels").write_bytes(b"half")
    with pytest.raises(StorageError, match=r"000000\.labels"):
        list(parts.rows("labels"))


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
        found, valid = scene.read((5, 15), (0, 50), (2, 0))
        np.testing.assert_array_equal(found, pixels[[2, 0], 5:15].transpose(1, 2, 0))
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


def test_a_palette_tiff_is_read_as_colours(tmp_path) -> None:
    ids = labels(30, 30)
    write_labels(tmp_path / "map.tif", pieces(ids), layout(height=30, width=30), CLASSES)
    with open_scene(tmp_path / "map.tif") as scene:
        assert scene.count == 3
        found, valid = scene.read((0, 30), (0, 30), (0, 1, 2))
    np.testing.assert_array_equal(found[ids == 1], np.broadcast_to((0, 0, 255), ((ids == 1).sum(), 3)))
    np.testing.assert_array_equal(valid, ids != 255)


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


def test_floating_point_pixels_are_refused(tmp_path) -> None:
    path = scene_file(tmp_path / "s.tif", np.ones((1, 4, 4), np.float32))
    with pytest.raises(DataError, match="float32"):
        open_scene(path)


def test_a_truncated_tiff_fails_where_it_is_read(tmp_path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (1, 600, 600)).astype(np.uint8)
    path = scene_file(
        tmp_path / "s.tif", pixels, tiled=True, blockxsize=256, blockysize=256, compress="deflate"
    )
    path.write_bytes(path.read_bytes()[:200_000])
    with open_scene(path) as scene, pytest.raises(DataError, match="rows 500 to 600"):
        scene.read((500, 600), (500, 600), (0,))

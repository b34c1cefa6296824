import json

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.crs import CRS

from d2ls.errors import ConfigError, StorageError
from d2ls.labels import ClassTable
from pipeline.prediction import map_writer
from pipeline.prediction.map_writer import Layout, quantize, write_labels, write_steps
from pipeline.prediction.parts import Parts
from pipeline.prediction.tags import read_tags
from sharding.raster.scene import Georeference, open_scene

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
    write_steps(tmp_path / "p.tif", pieces(steps, 17), layout(height=60, width=80), CLASSES.names)
    with rasterio.open(tmp_path / "p.tif") as file:
        assert file.descriptions == CLASSES.names
        assert file.nodata == 255
        result = file.read(masked=True) * file.scales[0]
        assert (result.mask == (ids == 255)).all()
        np.testing.assert_allclose(result.data[:, ids != 255], values[:, ids != 255], atol=0.00201)


def test_what_cannot_be_written_leaves_the_old_map_and_no_rest(tmp_path, monkeypatch) -> None:
    target = tmp_path / "map.tif"
    write_labels(target, pieces(labels()), layout(), CLASSES)
    before = target.read_bytes()
    with pytest.raises(StorageError, match="rows came"):
        write_labels(target, pieces(labels()[:300]), layout(), CLASSES)
    monkeypatch.setattr(map_writer, "_checksum", lambda _: 1)
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


def test_a_palette_tiff_is_read_as_colours(tmp_path) -> None:
    ids = labels(30, 30)
    write_labels(tmp_path / "map.tif", pieces(ids), layout(height=30, width=30), CLASSES)
    with open_scene(tmp_path / "map.tif") as scene:
        assert scene.count == 3
        result, valid = scene.read((0, 30), (0, 30), (0, 1, 2))
    np.testing.assert_array_equal(result[ids == 1], np.broadcast_to((0, 0, 255), ((ids == 1).sum(), 3)))
    np.testing.assert_array_equal(valid, ids != 255)

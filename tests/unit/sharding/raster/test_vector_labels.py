"""Vector labels on the grid of an image: values to classes, order of drawing, lines and points, CRS, refusals."""

import os
from pathlib import Path

import numpy as np
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS

from d2ls.errors import DataError
from d2ls.labels import IGNORE
from d2ls.window import Window
from sharding.files import FileRef
from sharding.raster import open_raster
from sharding.raster.vector_labels import VectorLabels, VectorLayer, read_layers, vector_grid
from sharding.raster.vectors import project, write_features
from tests.geodata import tiffs

UTM = CRS.from_user_input(tiffs.CRS)
WHOLE = Window(0, 0, tiffs.HEIGHT, tiffs.WIDTH)
VALUES = (("wood", 1), ("field", 2), ("unknown", IGNORE))


def ground(*shapes):
    """Shapes in pixels of the image, as coordinates."""
    a, _, c, _, e, f = tuple(tiffs.PLACE)[:6]
    return shapely.transform(np.array(shapes, object), lambda points: points * [a, e] + [c, f])


def box(row, column, height, width):
    return shapely.box(column, row, column + width, row + height)


def image(tmp_path, **profile):
    path = tiffs.tif(tmp_path / "image.tif", tiffs.pixels(), **profile)
    return open_raster(FileRef(str(path)))


def layer(tmp_path, shapes, name="labels", crs=UTM, **fields):
    """A GeoPackage of shapes, as a file of the data set."""
    path = tmp_path / f"{name}.gpkg"
    kind = np.asarray(shapes, object)[0].geom_type
    columns = {key: np.array(values) for key, values in fields.items()}
    write_features(path, "land", np.asarray(shapes, object), columns, crs, geometry_type=kind)
    return FileRef(str(path), "", str(path.stat().st_mtime_ns))


def by_kind(file, **options):
    return VectorLayer(file, attribute="kind", values=VALUES, **options)


def ids(tmp_path, *layers, **options):
    with image(tmp_path) as scene:
        return vector_grid(VectorLabels(tuple(layers), **options), scene).read(WHOLE)


def words(*texts):
    return np.array(texts, object)


def test_values_become_classes_and_the_rest_is_ignored_or_background(tmp_path):
    file = layer(
        tmp_path,
        ground(box(10, 20, 30, 40), box(50, 20, 8, 9), box(90, 0, 5, 5)),
        kind=words("wood", "field", "unknown"),
    )
    expected = np.full((tiffs.HEIGHT, tiffs.WIDTH), IGNORE, np.uint8)
    expected[10:40, 20:60] = 1
    expected[50:58, 20:29] = 2
    np.testing.assert_array_equal(ids(tmp_path, by_kind(file)), expected)
    covered = expected != IGNORE
    covered[90:95, :5] = True
    np.testing.assert_array_equal(ids(tmp_path, by_kind(file), background=0), np.where(covered, expected, 0))


def test_numbers_are_listed_as_recipes_spell_them(tmp_path):
    file = layer(tmp_path, ground(box(0, 0, 9, 9), box(20, 20, 9, 9)), code=[3, 4])
    numbers = VectorLayer(file, attribute="code", values=(("3", 0), ("4", 1)))
    pixels = ids(tmp_path, numbers)
    assert (pixels[0, 0], pixels[20, 20]) == (0, 1)


def test_values_that_are_not_listed_are_counted(tmp_path):
    shapes = ground(*(box(9 * n, 0, 4, 4) for n in range(4)))
    file = layer(tmp_path, shapes, kind=words("wood", "shed", "shed", None))
    with pytest.raises(
        DataError, match=r"'kind' .* does not list.*: 'shed' \(2\), 'null' \(1\). Listed: 'wood', 'field'"
    ):
        ids(tmp_path, by_kind(file))


@pytest.mark.parametrize(
    ("options", "top"),
    [({}, 2), ({"order": (2, 1)}, 1), ({"order": (1, 2)}, 2), ({"order_by": "level"}, 1)],
)
def test_the_order_of_drawing(tmp_path, options, top):
    shapes = ground(box(0, 0, 20, 20), box(10, 10, 20, 20))
    file = layer(tmp_path, shapes, kind=words("wood", "field"), level=[5.5, 5.0])
    assert ids(tmp_path, by_kind(file), **options)[15, 15] == top


def test_ignored_features_lie_over_all_classes_where_classes_decide(tmp_path):
    file = layer(tmp_path, ground(box(0, 0, 9, 9), box(0, 0, 20, 20)), kind=words("unknown", "wood"))
    assert ids(tmp_path, by_kind(file), order=(1, 2))[4, 4] == IGNORE
    assert ids(tmp_path, by_kind(file))[4, 4] == 1


def test_several_layers_lie_over_each_other(tmp_path):
    land = layer(tmp_path, ground(box(0, 0, 50, 50)), kind=words("field"))
    roads = layer(tmp_path, ground(shapely.LineString([(0, 25), (50, 25)])), "roads")
    road = VectorLayer(roads, only=0, buffer_m=1.2)
    pixels = ids(tmp_path, by_kind(land), road)
    assert (pixels[20, 20], pixels[24, 20], pixels[25, 20]) == (2, 0, 0)
    assert ids(tmp_path, road, by_kind(land))[25, 20] == 2


def test_lines_and_points_label_what_lies_within_their_buffer(tmp_path):
    line = ground(shapely.LineString([(20, 20), (60, 20)]))
    with pytest.raises(DataError, match=r"geometries without an area \(1 LineString\). Say with `buffer_m`"):
        ids(tmp_path, VectorLayer(layer(tmp_path, line), only=1))
    pixels = ids(tmp_path, VectorLayer(layer(tmp_path, line, "lines"), only=1, buffer_m=3.0))
    assert [int((pixels[:, 40] == 1).sum()), pixels[15, 40], pixels[14, 40]] == [10, 1, IGNORE]
    points = layer(tmp_path, ground(shapely.Point(80, 70)), "points")
    spot = ids(tmp_path, VectorLayer(points, only=1, buffer_m=6.0)) == 1
    assert spot.sum() == pytest.approx(np.pi * 10**2, rel=0.02)


def test_mixed_geometries_in_one_layer(tmp_path):
    collection = shapely.GeometryCollection([box(0, 0, 9, 9), shapely.Point(50, 50)])
    parts = shapely.MultiPolygon([box(80, 0, 4, 4), box(80, 30, 4, 4)])
    path = tmp_path / "labels.gpkg"
    shapes = ground(collection, parts)
    write_features(path, "land", shapes, {"kind": words("wood", "field")}, UTM, geometry_type="Unknown")
    file = FileRef(str(path))
    pixels = ids(tmp_path, by_kind(file, buffer_m=1.2))
    assert (pixels[4, 4], pixels[50, 50], pixels[82, 2], pixels[82, 32], pixels[82, 20]) == (
        1,
        1,
        2,
        2,
        IGNORE,
    )
    with pytest.raises(DataError, match=r"without an area \(1 Point\)"):
        ids(tmp_path, by_kind(file))


def test_every_pixel_that_is_touched(tmp_path):
    file = layer(tmp_path, ground(box(10.6, 20.6, 2, 2)), kind=words("wood"))
    assert int((ids(tmp_path, by_kind(file)) == 1).sum()) == 4
    assert int((ids(tmp_path, by_kind(file), all_touched=True) == 1).sum()) == 9


@pytest.mark.parametrize("code", [4326, 3857, 32614])
def test_layers_in_another_crs_are_projected(tmp_path, code):
    shapes = ground(box(10, 20, 30, 40), box(200, 300, 9, 9))
    there = project(shapes, UTM, CRS.from_epsg(code))
    file = layer(tmp_path, there, kind=words("wood", "field"), crs=CRS.from_epsg(code))
    with image(tmp_path) as scene:
        grid = vector_grid(VectorLabels((by_kind(file),)), scene)
        pixels = grid.read(WHOLE)
    assert grid.features == 1
    assert (pixels[11:39, 21:59] == 1).all()
    assert int((pixels == 1).sum()) == pytest.approx(30 * 40, abs=4)
    assert f"projected from EPSG:{code} to {tiffs.CRS} of the image" in grid.notes[0]
    assert ("differ in the datum only" in grid.notes[0]) == (code == 32614)


def test_metres_around_lines_on_an_image_in_degrees(tmp_path):
    place = Affine(1e-5, 0, 10, 0, -1e-5, 60)
    line = shapely.LineString([(10.0008, 59.9994), (10.0010, 59.9994)])
    file = layer(tmp_path, [line], crs=CRS.from_epsg(4326))
    with image(tmp_path, crs="EPSG:4326", transform=place) as scene:
        pixels = vector_grid(VectorLabels((VectorLayer(file, only=1, buffer_m=11.132),)), scene).read(WHOLE)
    assert int((pixels[:, 90] == 1).sum()) == 20  # rows of 1.1132 m
    assert int((pixels[60] == 1).sum()) == pytest.approx(20 + 40, abs=2)  # columns of half of that


def test_one_side_without_a_crs_is_refused(tmp_path):
    named = layer(tmp_path, ground(box(0, 0, 9, 9)), kind=words("wood"))
    unnamed = layer(tmp_path, ground(box(0, 0, 9, 9)), "unnamed", crs=None, kind=words("wood"))
    with pytest.raises(DataError, match=rf"names no CRS. Say it with `crs` .* crs: {tiffs.CRS}"):
        ids(tmp_path, by_kind(unnamed))
    assert (ids(tmp_path, by_kind(unnamed, crs=tiffs.CRS))[:9, :9] == 1).all()
    with image(tmp_path, crs=None) as scene, pytest.raises(DataError, match=r"gdal_edit.py -a_srs"):
        vector_grid(VectorLabels((by_kind(named),)), scene)
    with image(tmp_path, crs=None) as scene:
        grid = vector_grid(VectorLabels((by_kind(unnamed),)), scene)
    assert "neither the layer nor the image names a CRS" in grid.notes[0]
    with (
        image(tmp_path, crs=None, transform=None) as scene,
        pytest.raises(DataError, match="has no georeference"),
    ):
        vector_grid(VectorLabels((by_kind(named),)), scene)


def test_the_stamp_follows_rules_and_files_but_not_their_place(tmp_path):
    first, second = tmp_path / "1", tmp_path / "2"
    stamps = []
    for folder in (first, second):
        folder.mkdir()
        path = Path(layer(folder, ground(box(0, 0, 9, 9)), kind=words("wood")).path)
        os.utime(path, ns=(1, 1))
        stamps.append(VectorLabels((by_kind(FileRef(str(path), "", "7")),)).stamp)
    assert stamps[0] == stamps[1]
    file = FileRef(str(path), "", "7")
    assert VectorLabels((by_kind(file),), all_touched=True).stamp != stamps[0]
    assert VectorLabels((by_kind(FileRef(str(path), "", "8")),)).stamp != stamps[0]
    path.with_name("labels.gpkg-wal").write_text("saved edits")
    assert VectorLabels((by_kind(file),)).stamp != stamps[0]


def test_a_file_is_read_once_for_all_images(tmp_path):
    labels = VectorLabels((by_kind(layer(tmp_path, ground(box(0, 0, 9, 9)), kind=words("wood"))),))
    assert read_layers(labels) is read_layers(VectorLabels(labels.layers))

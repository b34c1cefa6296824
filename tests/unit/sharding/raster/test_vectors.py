"""Vector files: reading, repairs, counts and errors."""

import json
import sqlite3
from contextlib import closing

import numpy as np
import pyogrio
import pytest
import shapely
from rasterio.crs import CRS

from d2ls.errors import DataError
from sharding.raster.vectors import project, read_features, value_text, write_features

UTM = CRS.from_epsg(25832)
SQUARES = shapely.box([0, 5], [0, 0], [2, 9], [2, 3])


def write(path, geometries=SQUARES, layer="land", crs=UTM, **fields):
    """Writes features whose attributes are `fields`; returns the path."""
    write_features(path, layer, np.asarray(geometries), {k: np.asarray(v) for k, v in fields.items()}, crs)
    return path


def shapefile(path, names, encoding):
    pyogrio.raw.write(
        path, shapely.to_wkb(SQUARES), [np.array(names, object)], ["kind"], driver="ESRI Shapefile",
        geometry_type="Polygon", crs="EPSG:25832", encoding=encoding,
    )  # fmt: skip
    return path


def test_what_is_written_is_read_again(tmp_path):
    path = write(tmp_path / "a.gpkg", kind=np.array(["wood", "Straße"], object), number=[3, 4])
    features = read_features(path, columns=["number", "kind"])
    assert shapely.equals(features.geometries, SQUARES).all()
    assert features.fields["kind"].tolist() == ["wood", "Straße"]
    assert features.fields["number"].tolist() == [3, 4]
    assert (features.crs, features.notes) == (UTM, ())
    assert features.name == f"{path} (layer land)"


def test_qgis_3_22_opens_a_geopackage_without_a_warning(tmp_path):
    """Its GDAL 3.6 knows versions up to 1.3."""
    with closing(sqlite3.connect(write(tmp_path / "a.gpkg"))) as file:
        assert file.execute("pragma user_version").fetchone() == (10300,)


def test_features_are_appended_to_a_layer(tmp_path):
    path = write(tmp_path / "a.gpkg")
    write_features(path, "land", SQUARES, {}, UTM, append=True)
    assert len(read_features(path)) == 4


@pytest.mark.parametrize(("driver", "name"), [("GeoJSON", "a.geojson"), ("FlatGeobuf", "a.fgb")])
def test_other_formats(tmp_path, driver, name):
    wkb = shapely.to_wkb(SQUARES)
    kinds = [np.array(["x", "y"], object)]
    pyogrio.raw.write(
        tmp_path / name, wkb, kinds, ["kind"], driver=driver, geometry_type="Polygon", crs="EPSG:4326"
    )
    features = read_features(tmp_path / name, columns=["kind"])
    assert sorted(features.fields["kind"]) == ["x", "y"]
    assert features.crs == CRS.from_epsg(4326)


def test_one_of_several_layers_is_chosen(tmp_path):
    path = write(tmp_path / "a.gpkg")
    write(path, SQUARES[:1], layer="roads")
    assert len(read_features(path, layer="roads")) == 1
    with pytest.raises(
        DataError, match=r"2 layers \(land, roads\), and none is chosen.*ogr2ogr one\.gpkg .* land"
    ):
        read_features(path)
    with pytest.raises(DataError, match=r"no layer 'road'. Layers: land, roads"):
        read_features(path, layer="road")


def test_tables_without_geometries_are_no_layers(tmp_path):
    path = write(tmp_path / "a.gpkg")
    pyogrio.raw.write(
        path,
        None,
        [np.array(["qml"], object)],
        ["style"],
        layer="layer_styles",
        driver="GPKG",
        geometry_type=None,
    )
    assert len(read_features(path)) == 2


def test_attributes_that_are_not_there(tmp_path):
    path = write(tmp_path / "a.gpkg", kind=np.array(["a", "b"], object))
    with pytest.raises(DataError, match=r"no attribute 'class'. Attributes: kind"):
        read_features(path, columns=["class"])


def test_invalid_geometries_are_repaired_and_counted(tmp_path):
    bow = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    flat = shapely.Polygon([(0, 0), (1, 0), (2, 0), (0, 0)])
    features = read_features(write(tmp_path / "a.gpkg", [SQUARES[0], bow, flat], n=[1, 2, 3]))
    assert shapely.is_valid(features.geometries).all()
    assert shapely.area(features.geometries).tolist() == [4, 2]
    text = " ".join(features.notes)
    assert "2 of 3 geometries were invalid" in text
    assert "1 of 3 geometries cover no ground" in text


def test_heights_and_missing_geometries_are_counted(tmp_path):
    shapes = np.array([shapely.force_3d(SQUARES[0], 7), None], object)
    path = tmp_path / "a.gpkg"
    write_features(path, "land", shapes, {}, UTM, geometry_type="Polygon Z")
    features = read_features(path)
    assert shapely.equals(features.geometries, SQUARES[:1]).all()
    assert not shapely.has_z(features.geometries).any()
    assert [note.partition(": ")[2] for note in features.notes] == [
        "1 of 2 features without a geometry left out", "heights (Z) of 1 features not used",
    ]  # fmt: skip


def test_duplicated_ids_of_geojson_are_noted(tmp_path):
    shape = json.loads(shapely.to_geojson(SQUARES[0]))
    features = [{"type": "Feature", "id": 7, "properties": {}, "geometry": shape}] * 2
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    read = read_features(path)
    assert len(read) == 2
    assert "Several features with id = 7" in read.notes[0]


def test_layers_without_features(tmp_path):
    path = tmp_path / "a.geojson"
    path.write_text('{"type": "FeatureCollection", "features": []}')
    with pytest.raises(DataError, match="the layer has no features"):
        read_features(path)


def test_a_geopackage_that_another_program_writes_to_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "a.gpkg")
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **{**k, "timeout": 0.01}))
    with closing(connect(path, isolation_level=None)) as other:
        other.execute("begin exclusive")
        with pytest.raises(DataError, match=r"another program is writing to it .* end editing in QGIS"):
            read_features(path)
        other.execute("rollback")
    assert len(read_features(path)) == 2


@pytest.mark.parametrize("name", ["a.gpkg", "a.shp", "a.geojson"])
def test_files_that_are_something_else(tmp_path, name):
    (tmp_path / name).write_text("hello")
    with pytest.raises(DataError, match=f"{name}: not a readable vector file"):
        read_features(tmp_path / name)
    with pytest.raises(DataError, match=f"b.{name}: not a readable vector file: No such file"):
        read_features(tmp_path / f"b.{name}")


def test_a_shapefile_of_another_encoding(tmp_path):
    path = shapefile(tmp_path / "a.shp", ["Straße", "b"], "cp1252")
    assert read_features(path, columns=["kind"]).fields["kind"][0] == "Straße"
    path.with_suffix(".cpg").unlink()
    utf = shapefile(tmp_path / "b.shp", ["Straße", "b"], "UTF-8")
    utf.with_suffix(".cpg").unlink()
    assert read_features(utf, columns=["kind"]).fields["kind"][0] != "Straße"
    assert read_features(utf, columns=["kind"], encoding="UTF-8").fields["kind"][0] == "Straße"
    with pytest.raises(DataError, match=r"texts are not utf-8. Name the `encoding`"):
        read_features(path, columns=["kind"], encoding="UTF-8")


def test_the_crs_of_a_file_that_names_none_can_be_said(tmp_path):
    path = shapefile(tmp_path / "a.shp", ["a", "b"], "UTF-8")
    with pytest.raises(DataError, match="the file is in EPSG:25832, and the recipe says EPSG:4326"):
        read_features(path, crs="EPSG:4326")
    path.with_suffix(".prj").unlink()
    assert read_features(path).crs is None
    assert read_features(path, crs="EPSG:25832").crs == UTM
    with pytest.raises(DataError, match="EPSG:25"):
        read_features(path, crs="EPSG:25")
    assert read_features(write(tmp_path / "b.gpkg", crs=None)).crs is None


def test_vertices_are_projected():
    there = project(SQUARES, UTM, CRS.from_epsg(4326))
    back = project(there, CRS.from_epsg(4326), UTM)
    np.testing.assert_allclose(shapely.get_coordinates(back), shapely.get_coordinates(SQUARES), atol=1e-6)
    assert project(SQUARES, UTM, None) is SQUARES
    with pytest.raises(DataError, match="EPSG:25832"):
        project(shapely.box([0], [95], [1], [99]), CRS.from_epsg(4326), UTM)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (3.0, "3"),
        (2.5, "2.5"),
        (True, "true"),
        (None, "null"),
        (float("nan"), "null"),
        ("a b", "a b"),
    ],
)
def test_values_are_spelt_as_in_recipes(value, text):
    assert value_text(value) == text

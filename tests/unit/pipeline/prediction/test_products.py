"""Files beside a map: polygons, style, areas, confidence; removal of small parts; an area of interest."""

import csv
import sqlite3
from contextlib import closing
from xml.etree import ElementTree

import numpy as np
import pyogrio
import pytest
import rasterio
import rasterio.features
import shapely
import shapely.geometry

from d2ls.errors import ConfigError, DataError, StorageError
from d2ls.inference import Predictor
from pipeline.predict import main
from pipeline.prediction import rows as rows_module
from pipeline.prediction.map_scene import map_scene
from pipeline.prediction.provenance import read_provenance
from pipeline.prediction.request import AreaOptions, MapOptions, PolygonOptions
from sharding.raster.gdal import GdalRaster
from sharding.raster.vectors import read_features, write_features
from tests.inference_stubs import LocalStub, model_info

UTM = rasterio.CRS.from_epsg(32632)
TRANSFORM = rasterio.Affine(0.5, 0, 400_000, 0, -0.5, 5_000_000)
HEIGHT, WIDTH = 90, 110


def scene(path, transform=TRANSFORM, crs=UTM):
    pixels = np.random.default_rng(0).integers(1, 256, (3, HEIGHT // 5, WIDTH // 5)).astype(np.uint8)
    pixels = pixels.repeat(5, axis=1).repeat(5, axis=2)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=HEIGHT,
        width=WIDTH,
        count=3,
        dtype="uint8",
        crs=crs,
        transform=transform,
    ) as file:
        file.write(pixels)
    return path


def run(source, target, **options):
    model = Predictor(LocalStub(bands=3), model_info())
    return map_scene(model, str(source), str(target), MapOptions(**options), digest="d")


def read(path):
    with rasterio.open(path) as file:
        return file.read(1)


def layer(path, *polygons, crs=UTM, **fields):
    write_features(
        path, "some", np.array(polygons, object), {k: np.array(v, object) for k, v in fields.items()}, crs
    )
    return path


def burned(polygons, transform=TRANSFORM):
    pairs = zip(polygons.geometries, polygons.fields["class_id"].tolist(), strict=True)
    return rasterio.features.rasterize(pairs, (HEIGHT, WIDTH), fill=255, transform=transform, dtype="uint8")


@pytest.fixture
def strips_of_ten_rows(monkeypatch):
    monkeypatch.setattr(rows_module, "STRIP_PIXELS", 10 * WIDTH)


@pytest.mark.parametrize("transform", [TRANSFORM, rasterio.Affine(0.4, 0.3, 400_000, 0.3, -0.4, 5_000_000)])
def test_polygons_are_the_map(tmp_path, strips_of_ten_rows, transform) -> None:
    source = scene(tmp_path / "s.tif", transform)
    run(source, tmp_path / "map.tif", polygons=PolygonOptions(), probabilities=True)
    names = ("class", "class_id", "area_m2", "mean_probability")
    polygons = read_features(tmp_path / "map.gpkg", columns=names)
    labels = read(tmp_path / "map.tif")
    assert polygons.crs == UTM
    assert polygons.notes == ()
    np.testing.assert_array_equal(burned(polygons, transform), labels)
    assert polygons.fields["area_m2"].sum() == pytest.approx(HEIGHT * WIDTH * 0.25)
    np.testing.assert_allclose(shapely.area(polygons.geometries), polygons.fields["area_m2"], rtol=1e-6)
    assert set(polygons.fields["class"]) <= set(model_info().classes.names)
    with rasterio.open(tmp_path / "map.probabilities.tif") as file:
        best = file.read().max(axis=0) / 250
    mean = np.average(polygons.fields["mean_probability"], weights=polygons.fields["area_m2"])
    assert mean == pytest.approx(best.mean(), abs=1e-6)


def test_chosen_classes_alone(tmp_path) -> None:
    name = model_info().classes.names[1]
    source = scene(tmp_path / "s.tif")
    run(source, tmp_path / "map.tif", polygons=PolygonOptions(str(tmp_path / "own.gpkg"), (name,)))
    polygons = read_features(tmp_path / "own.gpkg", columns=("class", "class_id"))
    assert set(polygons.fields["class"]) == {name}
    np.testing.assert_array_equal(burned(polygons) == 1, read(tmp_path / "map.tif") == 1)
    with pytest.raises(ConfigError, match="--polygon-classes sea: the model knows"):
        run(source, tmp_path / "b.tif", polygons=PolygonOptions(classes=("sea",)))


def test_small_parts_take_the_class_around_them_in_map_and_polygons(tmp_path, strips_of_ten_rows) -> None:
    source = scene(tmp_path / "s.tif")
    options = {"polygons": PolygonOptions(), "areas": AreaOptions()}
    run(source, tmp_path / "all.tif", **options)
    report = run(source, tmp_path / "few.tif", min_area_m2=20.0, **options)
    every, few = (
        read_features(tmp_path / f"{n}.gpkg", columns=("area_m2", "class_id")) for n in ("all", "few")
    )
    assert every.fields["area_m2"].min() < 20 <= few.fields["area_m2"].min()
    np.testing.assert_array_equal(burned(few), read(tmp_path / "few.tif"))
    np.testing.assert_array_equal(
        report.pixels[:4], np.bincount(read(tmp_path / "few.tif").ravel(), minlength=4)
    )
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_noise_leaves_no_small_part(tmp_path) -> None:
    labels = np.random.default_rng(0).integers(0, 3, (120, 90)).astype(np.uint8)
    labels[:30, :20] = 255
    with rows_module.sieved(rows_module.whole(labels, 16), labels.shape, 40, tmp_path) as kept:
        np.testing.assert_array_equal(kept == 255, labels == 255)
        regions = rasterio.features.shapes(np.array(kept), connectivity=4)
        assert min(shapely.area(shapely.geometry.shape(outline)) for outline, _ in regions) >= 40
    assert list(tmp_path.iterdir()) == []


def test_simplified_polygons_leave_no_gap(tmp_path, strips_of_ten_rows) -> None:
    source = scene(tmp_path / "s.tif")
    run(source, tmp_path / "map.tif", polygons=PolygonOptions(simplify_m=2.0))
    polygons = read_features(tmp_path / "map.gpkg", columns=("area_m2",))
    assert shapely.area(polygons.geometries).sum() == pytest.approx(HEIGHT * WIDTH * 0.25, rel=0.01)
    assert shapely.area(shapely.union_all(polygons.geometries)) == pytest.approx(
        polygons.fields["area_m2"].sum(), rel=1e-6
    )


def test_qgis_finds_colours_and_names(tmp_path) -> None:
    source = scene(tmp_path / "s -- 1.tif")
    run(source, tmp_path / "map.tif", polygons=PolygonOptions(), style=True)
    names, palette = model_info().classes.names, model_info().classes.palette
    entries = ElementTree.parse(tmp_path / "map.qml").iter("paletteEntry")
    result = [(entry.get("label"), entry.get("value"), entry.get("color")) for entry in entries]
    assert result == [
        (name, str(i), "#{:02x}{:02x}{:02x}".format(*palette[i])) for i, name in enumerate(names)
    ]
    assert [name for name, kind in pyogrio.list_layers(tmp_path / "map.gpkg") if kind] == ["classes"]
    with closing(sqlite3.connect(tmp_path / "map.gpkg")) as file:
        query = "select f_table_name, f_geometry_column, useAsDefault, styleQML from layer_styles"
        ((table, column, default, style),) = file.execute(query).fetchall()
        geometry = file.execute("select column_name from gpkg_geometry_columns").fetchone()[0]
    assert (table, column, default) == ("classes", geometry, 1)
    categories = ElementTree.fromstring(style.partition("\n")[2]).iter("category")
    assert [category.get("value") for category in categories] == list(names)


def test_the_confidence_is_that_of_the_label(tmp_path) -> None:
    run(scene(tmp_path / "s.tif"), tmp_path / "map.tif", confidence=True, probabilities=True)
    with rasterio.open(tmp_path / "map.confidence.tif") as file:
        confidence = file.read(1)
        assert file.scales == (1 / 250,)
    with rasterio.open(tmp_path / "map.probabilities.tif") as file:
        np.testing.assert_array_equal(confidence, file.read().max(axis=0))


def test_areas_by_class_and_zone(tmp_path) -> None:
    zone = shapely.box(400_000, 4_999_955, 400_020, 5_000_000)
    zones = layer(tmp_path / "zones.gpkg", zone, name=["west"])
    source = scene(tmp_path / "s.tif")
    run(source, tmp_path / "map.tif", areas=AreaOptions(str(zones), "name"))
    labels = read(tmp_path / "map.tif")
    table = list(csv.DictReader((tmp_path / "map.areas.csv").open()))
    for zone_name, pixels in (("", labels), ("west", labels[:, :40])):
        counts = [int(row["pixels"]) for row in table if row["zone"] == zone_name]
        expected = np.bincount(pixels.ravel(), minlength=256)
        assert counts == [*expected[: len(counts) - 1], expected[255]]
    assert sum(float(row["hectares"]) for row in table if not row["zone"]) == pytest.approx(
        HEIGHT * WIDTH * 0.25e-4
    )
    assert "# Areas of map.tif" in (tmp_path / "map.areas.md").read_text()


def test_only_the_area_of_interest_is_read_and_mapped(tmp_path, monkeypatch) -> None:
    circle = shapely.Point(400_015, 4_999_980).buffer(9)
    area = layer(tmp_path / "aoi.gpkg", circle)
    source = scene(tmp_path / "s.tif")
    run(source, tmp_path / "whole.tif")
    seen = []
    monkeypatch.setattr("sharding.raster.gdal.GdalRaster.read", _recording(seen))
    run(source, tmp_path / "map.tif", area=str(area))
    labels = read(tmp_path / "map.tif")
    inside = rasterio.features.rasterize([circle], labels.shape, transform=TRANSFORM) > 0
    assert (labels[~inside] == 255).all()
    np.testing.assert_array_equal(labels[inside], read(tmp_path / "whole.tif")[inside])
    column, row = 2 * 15, 2 * 20
    assert seen
    assert all(abs(w.row + w.height / 2 - row) < w.height + 20 for w in seen)
    assert all(abs(w.column + w.width / 2 - column) < w.width + 20 for w in seen)


def _recording(seen):
    original = GdalRaster.read

    def recorded(self, window=None, bands=None, grid=None):
        seen.append(window)
        return original(self, window, bands, grid)

    return recorded


def test_layers_that_cannot_be_laid_over_the_scene_are_refused(tmp_path) -> None:
    source = scene(tmp_path / "s.tif")
    far = layer(tmp_path / "far.gpkg", shapely.box(0, 0, 9, 9))
    with pytest.raises(DataError, match=r"far\.gpkg .*no polygon reaches into .*s\.tif"):
        run(source, tmp_path / "a.tif", area=str(far))
    nowhere = layer(tmp_path / "nowhere.gpkg", shapely.box(4e5, 4e6, 5e5, 6e6), crs=None)
    with pytest.raises(DataError, match=r"nowhere\.gpkg .*names no CRS.*ogr2ogr -a_srs EPSG"):
        run(source, tmp_path / "a.tif", areas=AreaOptions(str(nowhere)))
    points = tmp_path / "points.geojson"
    points.write_text('{"type": "Point", "coordinates": [7.7, 45.1]}')
    with pytest.raises(DataError, match="1 of 1 geometries are points or lines; give a layer of polygons"):
        run(source, tmp_path / "a.tif", area=str(points))
    with pytest.raises(DataError, match="no attribute 'name'"):
        run(source, tmp_path / "a.tif", areas=AreaOptions(str(far), "name"))
    with pytest.raises(DataError, match=r"missing\.gpkg"):
        run(source, tmp_path / "a.tif", area=str(tmp_path / "missing.gpkg"))
    assert not (tmp_path / "a.tif").exists()


def test_areas_need_metres(tmp_path) -> None:
    degrees = rasterio.Affine(1e-5, 0, 9.1, 0, -1e-5, 48)
    source = scene(tmp_path / "s.tif", degrees, rasterio.CRS.from_epsg(4326))
    with pytest.raises(
        DataError, match=r"--polygons, --min-area-m2 needs a CRS in metres.*gdalwarp -t_srs EPSG:32632"
    ):
        run(source, tmp_path / "map.tif", polygons=PolygonOptions(), min_area_m2=3.0)


def test_files_of_the_user_stay_and_own_ones_are_known(tmp_path) -> None:
    source = scene(tmp_path / "s.tif")
    options = {"polygons": PolygonOptions(), "style": True, "areas": AreaOptions(), "confidence": True}
    endings = ("gpkg", "qml", "areas.md", "areas.csv", "confidence.tif")
    run(source, tmp_path / "map.tif", **options)
    assert run(source, tmp_path / "map.tif", **options).skipped
    for ending in endings:
        ours = tmp_path / f"map.{ending}"
        assert read_provenance(str(ours)) == read_provenance(str(tmp_path / "map.tif"))
        mine = tmp_path / f"other.{ending}"
        mine.write_text("mine")
        with pytest.raises(ConfigError, match="is not a map of this program, it is left as it is"):
            run(source, tmp_path / "other.tif", **options)
        assert mine.read_text() == "mine"
        mine.unlink()
    with (tmp_path / "map.areas.csv").open("a") as file:
        file.write("edited\n")
    with pytest.raises(ConfigError, match=r"areas\.csv: exists and is not a map"):
        run(source, tmp_path / "map.tif", **options)
    (tmp_path / "map.areas.csv").unlink()
    (tmp_path / "map.gpkg").unlink()
    assert not run(source, tmp_path / "map.tif", **options).skipped
    assert {path.name for path in tmp_path.iterdir()} == {
        "s.tif", "map.tif", "map.tif.aux.xml", *(f"map.{ending}" for ending in endings)
    }  # fmt: skip


def test_a_layer_that_is_read_is_never_written_over(tmp_path) -> None:
    source = scene(tmp_path / "s.tif")
    zones = layer(tmp_path / "map.gpkg", shapely.box(400_000, 4_999_955, 400_020, 5_000_000))
    before = zones.read_bytes()
    with pytest.raises(ConfigError, match=r"map\.gpkg: is the file of --zones and would be overwritten"):
        run(
            source,
            tmp_path / "map.tif",
            polygons=PolygonOptions(),
            areas=AreaOptions(str(zones)),
            overwrite=True,
        )
    assert zones.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--simplify-m", "2"], "--simplify-m is about polygons; add --polygons"),
        (["--polygon-classes", "a"], "--polygon-classes is about polygons"),
        (["--polygons", "p.shp"], r"--polygons p\.shp: polygons are written as \.gpkg"),
        (["--polygons", "s3://b/p.gpkg"], "is for local files"),
        (["--polygons", "--simplify-m", "-1"], "--simplify-m -1: give metres, more than 0"),
        (["--min-area-m2", "0"], "--min-area-m2 0: give square metres"),
        (["--zone-field", "name"], "--zone-field name is about zones"),
        (["--submission", "loveda", "--style"], "--style: not for a submission"),
    ],
)
def test_options_that_contradict_each_other_are_refused(words, message) -> None:
    with pytest.raises(ConfigError, match=message):
        main(["model", "in.tif", "out.tif", *words])


def test_one_file_of_polygons_for_several_scenes_is_refused(tmp_path) -> None:
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    for name in ("a.tif", "b.tif"):
        scene(scenes / name)
    with pytest.raises(ConfigError, match="2 scenes have a file of polygons each; leave the name out"):
        main(["model", str(scenes), str(tmp_path / "maps"), "--polygons", "p.gpkg"])


def test_a_finished_file_stays_when_another_one_is_added(tmp_path) -> None:
    source = scene(tmp_path / "s.tif")
    run(source, tmp_path / "map.tif", polygons=PolygonOptions())
    layer_names = pyogrio.list_layers(tmp_path / "map.gpkg")[:, 0].tolist()
    write_features(
        tmp_path / "map.gpkg", "mine", np.array([shapely.Point(1, 2)], object), {}, UTM, geometry_type="Point"
    )
    before = (tmp_path / "map.tif").stat().st_mtime_ns
    assert not run(source, tmp_path / "map.tif", polygons=PolygonOptions(), style=True).skipped
    assert (tmp_path / "map.qml").is_file()
    assert {*pyogrio.list_layers(tmp_path / "map.gpkg")[:, 0]} == {*layer_names, "mine"}
    assert (tmp_path / "map.tif").stat().st_mtime_ns == before
    run(source, tmp_path / "map.tif", polygons=PolygonOptions(), style=True, overwrite=True)
    assert {*pyogrio.list_layers(tmp_path / "map.gpkg")[:, 0]} == {*layer_names}


def test_a_zone_without_a_name_is_not_the_whole_map(tmp_path) -> None:
    source = scene(tmp_path / "s.tif")
    x, y = TRANSFORM @ (5, 5)
    boxes = [
        shapely.box(x, y - 3, x + 3, y),
        shapely.box(x, y - 6, x + 3, y - 3),
        shapely.box(x, y - 9, x + 3, y - 6),
    ]
    zones = layer(tmp_path / "zones.gpkg", *boxes, name=["", None, "north"])
    run(source, tmp_path / "map.tif", areas=AreaOptions(str(zones), "name"))
    rows = (tmp_path / "map.areas.csv").read_text().splitlines()[1:]
    assert list(dict.fromkeys(row.split(",")[0] for row in rows)) == ["", "number 1", "number 2", "north"]
    assert (tmp_path / "map.areas.md").read_text().count("| whole map | no data |") == 1


def test_a_full_disk_is_reported_and_kills_nothing(tmp_path, monkeypatch) -> None:
    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    source = scene(tmp_path / "s.tif")
    with pytest.raises(StorageError, match=r"cannot be written: .*No space left on device"):
        run(source, tmp_path / "map.tif", min_area_m2=9.0)
    monkeypatch.undo()
    run(source, tmp_path / "map.tif", min_area_m2=9.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map.tif", "map.tif.aux.xml", "s.tif"]

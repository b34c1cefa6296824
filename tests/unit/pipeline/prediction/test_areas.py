"""Areas: counted by zone, and adjusted for the errors of the map as in Olofsson et al. (2014)."""

import csv
import io
import json

import numpy as np
import pytest
import rasterio
import shapely

from d2ls.errors import ConfigError, DataError
from d2ls.labels import ClassTable
from pipeline.prediction.areas import AreaTable, adjust, read_report
from pipeline.prediction.arguments import parse_request
from pipeline.prediction.ground import ground_area
from pipeline.prediction.layers import count_in_zones
from pipeline.prediction.rows import whole
from sharding.raster.base import Georeference

CLASSES = ClassTable.create(["loss", "gain", "forest", "other"], [(10 * n, 0, 0) for n in range(4)])

# Table 8 of the paper: test units by map class (rows) and reference class (columns). 30 m pixels.
COUNTS = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
MAPPED_PIXELS = np.array([200_000, 150_000, 3_200_000, 6_450_000])
PAPER_HECTARES = [21_158, 11_686, 285_770, 581_386]
PAPER_HALF_WIDTHS = [6_158, 3_756, 15_510, 16_282]


def test_the_worked_example_of_the_paper() -> None:
    result = adjust(MAPPED_PIXELS * 0.09, COUNTS)
    np.testing.assert_allclose(result.areas, PAPER_HECTARES, atol=1)
    np.testing.assert_allclose(result.half_widths, PAPER_HALF_WIDTHS, rtol=2e-3)


def test_a_map_without_errors_keeps_its_areas() -> None:
    result = adjust(np.array([3.0, 5.0]), np.diag([40, 60]))
    np.testing.assert_allclose(result.areas, [3, 5])
    np.testing.assert_allclose(result.half_widths, 0, atol=1e-12)


def test_a_mapped_class_that_was_never_tested_rules_an_adjustment_out() -> None:
    with pytest.raises(DataError, match="class 1 is mapped, and has 0 test units"):
        adjust(np.array([3.0, 5.0]), np.array([[4, 1], [0, 0]]))
    counts = np.zeros((1, 256), np.int64)
    counts[0, :4] = 100
    table = AreaTable(("",), counts, CLASSES, 0.01, COUNTS * np.array([[1], [1], [1], [0]]))
    assert "fewer than two pixels mapped as other" in table.to_markdown("map.tif", "x")
    assert "adjusted" not in table.to_csv().decode().splitlines()[0]


def test_the_table_holds_every_zone_and_class() -> None:
    counts = np.zeros((2, 256), np.int64)
    counts[0, [0, 1, 2, 3, 255]] = [*MAPPED_PIXELS, 7]
    counts[1, 0] = 50
    table = AreaTable(("", "A | B"), counts, CLASSES, 0.09, COUNTS)
    rows = list(csv.DictReader(io.StringIO(table.to_csv().decode())))
    assert [row["zone"] for row in rows] == [""] * 5 + ["A | B"] * 5
    assert float(rows[0]["hectares"]) == pytest.approx(18_000)
    assert float(rows[0]["adjusted_hectares"]) == pytest.approx(21_158, abs=1)
    assert float(rows[0]["high_95"]) == pytest.approx(27_316, rel=1e-3)
    assert rows[4]["class"] == "no data"
    assert rows[4]["pixels"] == "7"
    assert rows[5]["adjusted_hectares"] == ""
    text = table.to_markdown("map.tif", "d2ls_map={}")
    assert "| whole map | loss | 200,000 | 18,000 | 2.0% | 21,158 (15,0" in text
    assert "| A \\| B | loss | 50 | 4.5 | 100.0% |  |" in text
    assert "lower bounds" in text


def test_zones_are_counted_pixel_by_pixel_and_may_overlap() -> None:
    labels = np.random.default_rng(0).integers(0, 4, (90, 70)).astype(np.uint8)
    transform = rasterio.Affine(2, 0, 1000, 0, -2, 5000)
    left, all_of_it = shapely.box(1000, 4820, 1040, 5000), shapely.box(0, 0, 9000, 9000)
    circle = shapely.Point(1070, 4910).buffer(33)
    counts = count_in_zones(whole(labels, 16), [left, all_of_it, circle], transform, 70)
    np.testing.assert_array_equal(counts[0], np.bincount(labels.ravel(), minlength=256))
    np.testing.assert_array_equal(counts[1], np.bincount(labels[:, :20].ravel(), minlength=256))
    np.testing.assert_array_equal(counts[2], counts[0])
    inside = rasterio.features.rasterize([circle], labels.shape, transform=transform) > 0
    np.testing.assert_array_equal(counts[3], np.bincount(labels[inside], minlength=256))


def report(tmp_path, **changes):
    content = {"confusion": COUNTS.T.tolist(), "classes": CLASSES.to_json()} | changes
    path = tmp_path / "report.json"
    path.write_text(json.dumps([content]))
    return path


def test_a_report_gives_units_by_map_class(tmp_path) -> None:
    np.testing.assert_array_equal(read_report(str(report(tmp_path)), CLASSES), COUNTS)


def test_other_reports_are_refused(tmp_path) -> None:
    path = report(tmp_path, classes=CLASSES.to_json()[::-1])
    with pytest.raises(ConfigError, match="is about other, forest, gain, loss, the model knows loss"):
        read_report(str(path), CLASSES)
    path.write_text("no JSON")
    with pytest.raises(ConfigError, match=r"report\.json: is not a report of `python -m pipeline\.evaluate`"):
        read_report(str(path), CLASSES)
    path.write_text(json.dumps({"classes": CLASSES.to_json()}))
    with pytest.raises(
        ConfigError,
        match=r"report\.json: has no 'confusion'; name the report of this model with --evaluation-report",
    ):
        read_report(str(path), CLASSES)
    for confusion in ([[1, 2]], [[1], [2, 3]], [[0.5] * 4] * 4, [[-1] * 4] * 4, None):
        with pytest.raises(ConfigError, match=r"does not hold counts of 4 classes; .* --evaluation-report"):
            read_report(str(report(tmp_path, confusion=confusion)), CLASSES)
    path.write_text(json.dumps([{"confusion": [[1]], "classes": []}] * 2))
    with pytest.raises(ConfigError, match="holds the reports of 2 models"):
        read_report(str(path), CLASSES)


def place(epsg, transform=None):
    transform = transform or rasterio.Affine(0.5, 0, 4e5, 0, -0.5, 5e6)
    return Georeference(rasterio.CRS.from_epsg(epsg) if epsg else None, transform)


def degrees(longitude, latitude):
    return place(4326, rasterio.Affine(1e-5, 0, longitude, 0, -1e-5, latitude))


def test_a_pixel_covers_ground_in_square_metres() -> None:
    assert ground_area("s", place(32632), 9, 9, "--hectares").square_metres == pytest.approx(0.25)
    assert ground_area("s", place(2263), 9, 9, "--hectares").square_metres == pytest.approx(
        0.25 * 0.3048**2, rel=1e-4
    )


@pytest.mark.parametrize(
    ("georeference", "message"),
    [
        (
            place(4326, rasterio.Affine(1e-5, 0, 9.1, 0, -1e-5, 48)),
            r"EPSG:4326 \(degrees\).*gdalwarp -t_srs EPSG:32632",
        ),
        (
            place(4326, rasterio.Affine(1e-5, 0, -70, 0, -1e-5, -33)),
            r"gdalwarp -t_srs EPSG:32719 in\.tif out\.tif",
        ),
        (place(3857, rasterio.Affine(1, 0, 1e6, 0, -1, 6e6)), "web mercator, whose areas are not true"),
        (place(None), "needs a scene with a place and a CRS"),
        (Georeference(None, rasterio.Affine.identity(), gcps=(1,)), "ground control points alone"),
    ],
)
def test_areas_that_would_not_be_true_are_refused(georeference, message) -> None:
    with pytest.raises(DataError, match=rf"scene\.tif: --hectares .*{message}"):
        ground_area("scene.tif", georeference, 9, 9, "--hectares")


def test_options_that_need_true_areas_are_called_as_on_the_command_line() -> None:
    words = ["m", "in.tif", "out.tif", "--polygons", "--simplify-m", "1", "--min-area-m2", "4", "--hectares"]
    named = parse_request("predict", "", "", words).options.measured_by
    assert set(named.split(", ")) == {word for word in words if word.startswith("--")}

"""Places where a confident model contradicts the label."""

import json
import sqlite3
from contextlib import closing
from xml.etree import ElementTree

import numpy as np
import pyogrio
import pytest
import shapely

from d2ls.errors import ConfigError, StorageError
from pipeline.evaluate import main
from pipeline.evaluation import suspects as module
from pipeline.evaluation.request import EvaluateRequest
from pipeline.evaluation.suspects import find_suspects, write_layers, write_suspects
from sharding.raster.vectors import read_features
from tests.inference_stubs import tiny_bundle
from tests.shards import CLASSES, make_shards

FIELDS = (
    "rank",
    "scene",
    "sample",
    "window",
    "label",
    "predicted",
    "pixels",
    "area_m2",
    "probability",
    "score",
)


def sure_of(classes, probability=0.97):
    """Returns the probabilities (4 H W) of a model that is equally confident everywhere."""
    result = np.full((4, *classes.shape), (1 - probability) / 3, np.float32)
    np.put_along_axis(result, classes[None].astype(int), np.float32(probability), axis=0)
    return result


def labels_with_an_error():
    """Returns labels in which a forest is marked as water, and the truth."""
    truth = np.zeros((40, 50), np.uint8)
    truth[:, 25:] = 3
    labels = truth.copy()
    labels[5:15, 30:44] = 1
    labels[20:23, 30:33] = 1  # nine pixels: too few
    labels[30:, :10] = 255
    return labels, truth


def test_a_wrong_label_is_found_with_its_classes_and_size() -> None:
    labels, truth = labels_with_an_error()
    (suspect,) = find_suspects(labels, sure_of(truth))
    assert (suspect.label, suspect.predicted, suspect.pixels) == (1, 3, 140)
    assert suspect.shape.equals(shapely.box(30, 5, 44, 15))
    assert suspect.probability == pytest.approx(0.97)
    assert suspect.score == pytest.approx(140 * (0.97 - 0.01))


def test_a_model_that_is_not_sure_contradicts_nobody() -> None:
    labels, truth = labels_with_an_error()
    assert find_suspects(labels, sure_of(truth, 0.8)) == []
    assert len(find_suspects(labels, sure_of(truth, 0.8), 0.75)) == 1


def test_places_lie_where_the_sample_was_cut(tmp_path) -> None:
    labels, truth = labels_with_an_error()
    (suspect,) = find_suspects(labels, sure_of(truth))
    about = {"scene": "town", "key": "a_0", "window": [100, 200, 40, 50]}
    on_ground = about | {"crs": "EPSG:32632", "transform": [0.5, 0, 400_000, 0, -0.5, 5_000_000]}
    write_layers(tmp_path / "s.gpkg", [(suspect, on_ground), (suspect, about)], CLASSES)
    layer = read_features(tmp_path / "s.gpkg", layer="suspects EPSG:32632", columns=FIELDS)
    assert layer.geometries[0].equals(shapely.box(400_015, 4_999_992.5, 400_022, 4_999_997.5))
    values = {name: layer.fields[name][0] for name in FIELDS}
    assert (values["rank"], values["scene"], values["label"], values["predicted"]) == (
        1,
        "town",
        "water",
        "forest",
    )
    assert values["window"] == "100 200 40 50"
    assert values["area_m2"] == pytest.approx(35)
    pixels = read_features(tmp_path / "s.gpkg", layer="suspects pixels", columns=FIELDS)
    assert pixels.geometries[0].equals(shapely.box(230, -115, 244, -105))
    assert np.isnan(pixels.fields["area_m2"][0])
    assert [path.name for path in tmp_path.iterdir()] == ["s.gpkg"]
    with closing(sqlite3.connect(tmp_path / "s.gpkg")) as file:
        styles = dict(file.execute("select f_table_name, styleQML from layer_styles where useAsDefault"))
    assert set(styles) == {"suspects EPSG:32632", "suspects pixels"}
    renderer = ElementTree.fromstring(styles["suspects pixels"].partition("\n")[2]).find("renderer-v2")
    assert renderer.get("attr") == "predicted"
    assert [item.get("value") for item in renderer.iter("category")] == list(CLASSES.names)


def test_the_command_ranks_the_places_of_a_split(tmp_path, monkeypatch) -> None:
    make_shards(tmp_path / "shards", [3], split="val")
    model = str(tiny_bundle(tmp_path / "model", CLASSES))
    request = EvaluateRequest(model, str(tmp_path / "shards"), "val")
    count = write_suspects(request, tmp_path / "all.gpkg", min_probability=0.25)
    layer = read_features(tmp_path / "all.gpkg", columns=FIELDS)
    assert len(layer) == count > 0
    assert layer.fields["rank"].tolist() == list(range(1, count + 1))
    assert (np.diff(layer.fields["score"]) <= 0).all()
    assert (layer.fields["label"] != layer.fields["predicted"]).all()
    description = tmp_path / "model" / "model.json"
    values = json.loads(description.read_text())
    assert write_suspects(request, tmp_path / "plain.gpkg", min_probability=0.4) == 0, (
        "an untrained network is never sure"
    )
    description.write_text(json.dumps(values | {"temperature": 0.001}))
    assert write_suspects(request, tmp_path / "sharp.gpkg", min_probability=0.4) > 0
    description.write_text(json.dumps(values))
    monkeypatch.setattr(module, "MAX_PLACES", 2)
    words = [model, "--shards", str(tmp_path / "shards"), "--split", "val", "--bootstrap", "0"]
    words += ["--suspects", str(tmp_path / "s.gpkg"), "--suspect-probability", "0.25"]
    assert main(words) == 0
    assert pyogrio.read_info(tmp_path / "s.gpkg", layer="suspects")["features"] == 2
    with pytest.raises(StorageError, match="exists already; name another --suspects"):
        main(words)
    assert main([*words, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["m", "--suspects", "s.shp"], r"--suspects s\.shp: name a local file that ends in \.gpkg"),
        (["m", "n", "--suspects", "s.gpkg"], "2 models; name one"),
        (["m", "--suspects", "s.gpkg", "--suspect-probability", "2"], "between 0 and 1"),
        (["m", "--suspect-probability", "0.5"], "add --suspects"),
    ],
)
def test_impossible_options_are_refused(words, message) -> None:
    with pytest.raises(ConfigError, match=message):
        main([*words, "--shards", "x", "--split", "val"])

"""Scores of a model on shards of other classes: the confusion matrix of both, summed by a file."""

import json

import numpy as np
import pytest
import torch

from d2ls.data import EvaluationLoader
from d2ls.errors import ConfigError
from d2ls.labels import ClassTable
from d2ls.shards import ShardSet
from pipeline.config.train import ClusterConfig
from pipeline.evaluate import main
from pipeline.evaluation import parts
from pipeline.evaluation.class_map import ClassMap
from pipeline.evaluation.report import markdown
from pipeline.evaluation.request import EvaluateRequest
from pipeline.evaluation.run import evaluate
from pipeline.models import load_model, load_predictor
from tests.inference_stubs import tiny_bundle
from tests.shards import CLASSES, make_shards

MODEL = ClassTable.create(
    ["house", "shed", "lake", "wood", "snow"], [(i, 0, 0) for i in range(5)], [True, True, True, False, True]
)
FILE = """model: {house: built, shed: built, lake: water, wood: green, snow: null}
shards: {soil: null, water: water, road: built, forest: green}
"""
ALL_NULL = """model: {house: null, shed: null, lake: null, wood: null, snow: null}
shards: {soil: null, water: null, road: null, forest: null}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mapped")
    make_shards(folder / "shards", [3, 4, 2], split="test")
    tiny_bundle(folder / "model", MODEL)
    (folder / "map.yaml").write_text(FILE)
    assert CLASSES.names == ("soil", "water", "road", "forest")
    return str(folder / "model"), str(folder / "shards"), str(folder / "map.yaml")


@pytest.fixture(scope="module")
def evaluation(world):
    model, shards, file = world
    return evaluate(EvaluateRequest(model, shards, "test", bootstrap=50, class_map=ClassMap.read(file)))


@pytest.fixture(scope="module")
def table(world):
    """Pixels by class of the shards and by winning class of the model, counted by hand."""
    predictor = load_model(world[0])
    counts = np.zeros((4, 5), np.int64)
    for batch in EvaluationLoader(ShardSet.open(world[1]), "test", batch_size=1):
        predicted, labels = (
            predictor.tensor_logits(batch.images).argmax(1)[0].numpy(),
            batch.labels[0].numpy(),
        )
        np.add.at(counts, (labels[labels != 255], predicted[labels != 255]), 1)
    return counts


def test_the_confusion_matrix_is_that_of_the_winners_summed(evaluation, table):
    assert evaluation.classes.names == ("water", "built", "green"), "in the order of the shards' classes"
    assert evaluation.classes.palette == tuple(CLASSES.palette[i] for i in (1, 2, 3))
    truth, predicted = ([1], [2], [3]), ([2], [0, 1], [3])
    expected = [[table[np.ix_(rows, columns)].sum() for columns in predicted] for rows in truth]
    np.testing.assert_array_equal(evaluation.confusion, expected)
    assert (table.sum(axis=0) > 0).sum() > 2, "the model predicts several classes"
    assert evaluation.left_out == {"label": table[0].sum(), "prediction": table[1:, 4].sum()}
    assert evaluation.calibration[1, :, 0].sum() == evaluation.confusion.sum()
    assert evaluation.calibration[1, :, 1].sum() == evaluation.confusion.trace()


def test_workers_get_the_mapping_too(world, evaluation, monkeypatch):
    def here(function, items, folder, where, settings, cluster):
        predictor = load_predictor(folder, where=where, **settings)
        return ((item, function(predictor, item)) for item in items)

    monkeypatch.setattr(parts, "spread", here)
    model, shards, file = world
    cluster = ClusterConfig(workers=2)
    spread = evaluate(EvaluateRequest(model, shards, "test", cluster=cluster, class_map=ClassMap.read(file)))
    np.testing.assert_array_equal(spread.confusion, evaluation.confusion)


def test_the_report_shows_what_became_of_what(evaluation):
    text = markdown([evaluation])
    assert "| built | house, shed | road |" in text
    assert "| *left out* | snow | soil |" in text
    out = evaluation.left_out
    assert f"Left out: {out['label']:,} labelled pixels (" in text
    assert f"and {out['prediction']:,} (" in text
    values = json.loads(evaluation.to_json())["class_map"]
    assert values["model"]["snow"] is None
    assert values["left_out"] == out


def test_a_class_of_the_model_alone_counts_as_an_error_and_is_not_scored(world, tmp_path, table):
    file = tmp_path / "map.yaml"
    file.write_text("model: {house: road, shed: road, lake: water, wood: forest, snow: soil}")
    every = evaluate(EvaluateRequest(*world[:2], "test", bootstrap=0, class_map=ClassMap.read(str(file))))
    assert every.classes.names == CLASSES.names, "without `shards` their classes are the common ones"
    assert every.left_out == {"label": 0, "prediction": 0}
    assert every.confusion.sum() == table.sum()
    file.write_text(FILE.replace("snow: null", "snow: white"))
    extra = evaluate(EvaluateRequest(*world[:2], "test", bootstrap=0, class_map=ClassMap.read(str(file))))
    assert extra.classes.names == ("water", "built", "green", "white")
    assert extra.classes.scored == (True, True, True, False)
    assert extra.confusion[3].sum() == 0
    assert extra.confusion[:, 3].tolist() == [*table[[1, 2, 3], 4], 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (FILE.replace("house", "hose"), r"model: there is no class 'hose'\. Did you mean house\?"),
        (
            FILE.replace("forest: green", "forrest: green"),
            r"shards: there is no class 'forrest'.*Did you mean forest",
        ),
        (FILE.replace(", snow: null", ""), r"model: nothing is said about snow; .* write snow: null"),
        (FILE.replace("soil: null, ", ""), r"shards: nothing is said about soil"),
        (FILE.replace("soil: null", "soil: bare"), r"no class of the model becomes 'bare', so 'soil'"),
        (FILE.splitlines()[0], r"the shards have no class 'built'.*add the section `shards`"),
        ("model: {house: road, shed: road, lake: water, wood: forest, snow: null}", r"'soil'.*soil: null"),
        (ALL_NULL, "no scored class"),
        ("shards: {}", "the section `model`"),
        ("model: {}\nother: {}", "and nothing else"),
        ("model: [house]", "a mapping from class to class"),
        (FILE.replace("snow: null", "snow: false"), "'snow': False: classes are texts"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_before_the_work(world, tmp_path, text, message):
    file = tmp_path / "map.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"--map-classes .*map\.yaml: .*{message}"):
        evaluate(EvaluateRequest(*world[:2], "test", class_map=ClassMap.read(str(file))))


def test_the_command_takes_a_file_and_draws_common_classes(world, tmp_path, capsys):
    model, shards, file = world
    words = [model, "--shards", shards, "--split", "test", "--bootstrap", "0"]
    with pytest.raises(ConfigError, match=r"--map-classes FILE\.yaml"):
        main(words)
    assert main([*words, "--map-classes", file, "--output", str(tmp_path / "out")]) == 0
    assert "classes by" in capsys.readouterr().out
    assert (tmp_path / "out" / "samples-1.png").stat().st_size > 1000
    with pytest.raises(ConfigError, match="leave out --map-classes"):
        main([*words, "--map-classes", file, "--suspects", str(tmp_path / "s.gpkg")])
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: the file cannot be read"):
        main([*words, "--map-classes", str(tmp_path / "nowhere.yaml")])


def test_ids_are_translated_on_both_sides():
    model = {"house": "b", "shed": "b", "lake": "w", "wood": "w", "snow": None}
    shards = {"soil": None, "water": "w", "road": "b", "forest": "b"}
    mapping = ClassMap("f", model, shards).between(MODEL, CLASSES)
    predicted, labels = mapping.apply(torch.arange(5), torch.tensor([0, 1, 2, 255, 3]))
    assert predicted.tolist() == [1, 1, 0, 0, 255]
    assert labels.tolist() == [255, 0, 1, 255, 255]

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from d2ls.boundary import boundary_counts
from d2ls.data import EvaluationLoader
from d2ls.errors import ConfigError, DataError, ShardError, StorageError, WeightsError
from d2ls.inference.scoring import SampleCounts, merge
from d2ls.labels import ClassTable
from d2ls.metrics import BINS, boundary_scores, expected_calibration_error, score
from d2ls.models.saving import load_bundle, save_bundle
from d2ls.shards import ShardSet
from d2ls.training.evaluator import Evaluator
from d2ls.training.process_group import ProcessGroup
from pipeline.config.evaluate import boundary_pixels
from pipeline.evaluate import main
from pipeline.evaluation.parts import SplitPart
from pipeline.evaluation.published import published_table, published_tables
from pipeline.evaluation.report import markdown
from pipeline.evaluation.request import EvaluateRequest
from pipeline.evaluation.result import Evaluation, bootstrap, bootstrap_boundaries
from pipeline.evaluation.run import count_part, evaluate, evaluate_recipe
from pipeline.evaluation.temperature import fit_temperature, sum_slopes
from pipeline.models import load_model
from pipeline.registry.model_card import scores
from tests.inference_stubs import tiny_bundle
from tests.shards import CLASSES, make_shards
from tests.tracked_runs import make_checkpoint, make_recipe
from tests.tracked_runs import make_shards as blobs

BINS_OF_NOTHING = np.zeros((2, BINS, 3), np.int64)


def counted(confusion) -> list[SampleCounts]:
    return [SampleCounts("k", "s", confusion, BINS_OF_NOTHING)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    make_shards(folder / "shards", [3, 4, 2], split="test")
    tiny_bundle(folder / "model", CLASSES)
    return str(folder / "model"), str(folder / "shards")


@pytest.fixture(scope="module")
def evaluation(world) -> Evaluation:
    return evaluate(EvaluateRequest(*world, "test", bootstrap=200))


def test_it_counts_what_the_training_loop_counts(world, evaluation) -> None:
    model, shards = world
    network, _ = load_bundle(Path(model))
    loader = EvaluationLoader(ShardSet.open(shards), "test", batch_size=4)
    table, scores = Evaluator("test", CLASSES, lambda: loader, ProcessGroup())(network)
    np.testing.assert_array_equal(evaluation.confusion, table)
    assert evaluation.scores == scores
    labelled = sum(ShardSet.open(shards).card.splits["test"].class_pixels)
    assert evaluation.confusion.sum() == labelled


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_any_number_of_workers_gives_the_same(world, evaluation, world_size: int) -> None:
    model, shards = world
    predictor = load_model(model)
    part = SplitPart(shards, "test", 4, None)
    parts = [
        count_part(predictor, replace(part, rank=rank, world_size=world_size)) for rank in range(world_size)
    ]
    merged = merge(entry for part in parts[::-1] for entry in part)
    assert [entry.key for entry in merged] == [entry.key for entry in evaluation.samples]
    for one, two in zip(merged, evaluation.samples, strict=True):
        np.testing.assert_array_equal(one.confusion, two.confusion)
        np.testing.assert_array_equal(one.calibration, two.calibration)
    slopes = [
        sum_slopes(predictor, replace(part, rank=rank, world_size=world_size)) for rank in range(world_size)
    ]
    np.testing.assert_allclose(np.sum(slopes, axis=0), sum_slopes(predictor, part), rtol=1e-6)


def test_large_samples_are_cut_into_windows_and_counted_once(tmp_path) -> None:
    shards = make_shards(tmp_path / "shards", [2, 1], split="test", size=(70, 130))
    actual = evaluate(
        EvaluateRequest(str(tiny_bundle(tmp_path / "model", CLASSES)), shards.uri, "test", bootstrap=0)
    )
    assert actual.settings["window"] == 64
    assert len(actual.samples) == 3
    assert actual.confusion.sum() == sum(shards.card.splits["test"].class_pixels)


def test_augmentation_changes_the_counts_but_not_their_sum(world, evaluation) -> None:
    turned = evaluate(EvaluateRequest(*world, "test", tta="flips_turns", bootstrap=0))
    assert turned.confusion.sum() == evaluation.confusion.sum()
    assert (turned.confusion != evaluation.confusion).any()


def test_a_model_for_other_classes_or_bands_is_refused(world, tmp_path) -> None:
    others = ClassTable.create(["soil", "water", "road", "tree"], CLASSES.palette)
    with pytest.raises(ConfigError, match=r"tree.*forest"):
        evaluate(EvaluateRequest(str(tiny_bundle(tmp_path / "a", others)), world[1], "test"))
    more = tiny_bundle(tmp_path / "b", CLASSES, bands=("red", "green", "blue", "nir"))
    with pytest.raises(DataError, match="nir"):
        evaluate(EvaluateRequest(str(more), world[1], "test"))
    with pytest.raises(ShardError, match="no split 'val'"):
        evaluate(EvaluateRequest(*world, "val"))
    with pytest.raises(WeightsError, match="no such folder"):
        evaluate(EvaluateRequest(str(tmp_path / "none"), world[1], "test"))


def test_convention_and_plain_differ_by_the_scored_classes() -> None:
    table = ClassTable.create(["a", "b", "c"], [(1, 1, 1), (2, 2, 2), (3, 3, 3)], [True, True, False])
    counts = np.array([[5, 1, 2], [0, 7, 1], [3, 0, 4]])
    actual = Evaluation("m", {}, "s", table, counted(counts))
    assert actual.scores.miou == pytest.approx((5 / 11 + 7 / 9) / 2)
    assert actual.plain.miou == pytest.approx((5 / 11 + 7 / 9 + 4 / 10) / 3)
    assert actual.scores.overall_accuracy == actual.plain.overall_accuracy == pytest.approx(16 / 23)
    assert actual.majority.overall_accuracy == pytest.approx(8 / 23)
    assert actual.majority.iou == pytest.approx((8 / 23, 0, 0), nan_ok=True)


def test_bootstrap_agrees_with_a_loop_over_resampled_scenes() -> None:
    rng = np.random.default_rng(0)
    scenes = rng.integers(0, 50, (6, 3, 3))
    scored = (True, False, True)
    actual = bootstrap(scenes, scored, 300)
    draws = np.random.default_rng(0).multinomial(6, np.full(6, 1 / 6), 300)
    values = [score(np.repeat(scenes, draw, axis=0).sum(0), scored) for draw in draws]
    expected = np.quantile([value.miou for value in values], [0.025, 0.975])
    np.testing.assert_allclose(actual["miou"], expected)
    expected = np.quantile([value.overall_accuracy for value in values], [0.025, 0.975])
    np.testing.assert_allclose(actual["overall_accuracy"], expected)
    assert actual == bootstrap(scenes, scored, 300)


def test_intervals_hold_the_value_and_one_scene_has_none(evaluation) -> None:
    low, high = evaluation.intervals["miou"]
    assert low <= evaluation.scores.miou <= high
    one = Evaluation("m", {}, "s", CLASSES, evaluation.samples[:3], {"bootstrap": 100})
    assert {sample.scene for sample in one.samples} == {"scene0"}
    assert one.intervals == {}
    assert "one scene says nothing" in markdown([one])


def test_reports_read_back(evaluation) -> None:
    values = json.loads(evaluation.to_json())
    assert values["scores"]["miou"] == evaluation.scores.miou
    assert values["scores"]["iou"]["water"] == pytest.approx(evaluation.scores.iou[1], nan_ok=True)
    assert np.array_equal(values["confusion"], evaluation.confusion)
    text = markdown([evaluation, evaluation])
    assert "always the most frequent class" in text
    assert text.count("best and worst samples") == 2
    assert "ublished" not in text


@pytest.mark.parametrize("source", published_tables())
def test_published_figures_stand_apart(source: str) -> None:
    table = published_table(source)
    means = {"mIoU", "mF1", "OA"}
    classes = [name for name in table.columns if name not in means]
    names = classes or ["a", "b"]
    if source in ("potsdam", "vaihingen"):
        names = [*names, "clutter"]
    palette = [(i, i, i) for i in range(len(names))]
    counts = np.eye(len(names), dtype=np.int64)
    data = {"name": "my set", "source": source}
    actual = Evaluation("m", data, "val", ClassTable.create(names, palette), counted(counts))
    text = markdown([actual])
    assert "Not measured here" in text
    assert all(len(row) == len(table.columns) for row in table.rows.values())
    assert "| 100.00 |" in text


def test_published_rows_of_uavid_meet_our_class_order() -> None:
    names = ["building", "road", "tree", "lowveg", "movingcar", "staticcar", "human", "clutter"]
    counts = np.diag(np.arange(1, 9)) + np.eye(8, k=1, dtype=np.int64) * 3
    table = ClassTable.create(names, [(i, i, i) for i in range(8)])
    actual = Evaluation("m", {"source": "uavid"}, "val", table, counted(counts))
    line = next(line for line in markdown([actual]).splitlines() if line.startswith("| Clutter |"))
    assert f"{100 * actual.scores.iou[7]:.2f}" in line


def test_a_class_that_never_comes_has_no_value(evaluation) -> None:
    counts = np.zeros((4, 4), np.int64)
    counts[0, 0] = 9
    actual = Evaluation("m", {}, "s", CLASSES, counted(counts))
    assert math.isnan(actual.scores.iou[3])
    assert json.loads(actual.to_json())["scores"]["iou"]["forest"] is None
    assert actual.scores.miou == 1


def test_the_command_compares_models_and_writes_a_report(world, tmp_path, capsys) -> None:
    model, shards = world
    other = str(tiny_bundle(tmp_path / "other", CLASSES, seed=1))
    assert main([model, other, "--shards", shards, "--split", "test", "--output", str(tmp_path / "out")]) == 0
    assert len(json.loads((tmp_path / "out" / "report.json").read_text())) == 2
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "confusion-1.png", "confusion-2.png", "reliability-1.png", "reliability-2.png", "report.json", "report.md",
        "samples-1.png", "samples-2.png",
    ]  # fmt: skip
    assert "by class" in capsys.readouterr().out


def test_a_report_that_has_no_place_is_refused_before_anything_is_counted(
    world, tmp_path, monkeypatch
) -> None:
    model, shards = world
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr("pipeline.evaluation.run.evaluate", lambda *_, **__: pytest.fail("evaluated"))
    with pytest.raises(StorageError, match="file"):
        main([model, "--shards", shards, "--split", "test", "--output", str(tmp_path / "file")])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.md").write_text("mine")
    words = [model, "--shards", shards, "--split", "test", "--output", str(tmp_path / "out")]
    with pytest.raises(StorageError, match=r"report\.md: exists already; .*--overwrite"):
        main(words)
    with pytest.raises(pytest.fail.Exception, match="evaluated"):
        main([*words, "--overwrite"])
    assert (tmp_path / "out" / "report.md").read_text() == "mine"


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """Samples that are larger than the window of the model."""
    folder = tmp_path_factory.mktemp("cut")
    shards = make_shards(folder / "shards", [2, 1], split="test", size=(70, 130))
    return str(tiny_bundle(folder / "model", CLASSES)), shards


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_boundaries_are_counted_in_whole_samples_for_any_windows_and_workers(cut, world_size) -> None:
    model, shards = cut
    predictor, part = load_model(model), SplitPart(shards.uri, "test", 4, 64)
    parts = [
        count_part(predictor, replace(part, rank=rank, world_size=world_size), boundary_px=3)
        for rank in range(world_size)
    ]
    assert any(entry.pieces for rank in parts for entry in rank) == (world_size > 1)
    merged = merge((entry for rank in parts[::-1] for entry in rank), boundary_px=3)
    assert [entry.key for entry in merged] == sorted(shards.rows("test")["key"].to_pylist())
    whole = EvaluationLoader(shards, "test", batch_size=1)
    for batch, entry in zip(whole, merged, strict=True):
        labels, image = batch.labels[0], batch.images
        predicted = torch.full(labels.shape, 255)
        for top in (70 - 64, 0):  # the last windows are moved back; the first ones count where two overlap
            for left in (130 - 64, 64, 0):
                window = image[:, :, top : top + 64, left : left + 64]
                predicted[top : top + 64, left : left + 64] = predictor.tensor_logits(window).argmax(1)[0]
        expected = boundary_counts(predicted, labels, 4, 3)
        np.testing.assert_array_equal(entry.boundary, expected)
        assert entry.pieces == ()
        assert expected.sum() > 0


def test_boundary_scores_are_reported(cut) -> None:
    model, shards = cut
    actual = evaluate(EvaluateRequest(model, shards.uri, "test", bootstrap=0, boundary_px=2))
    values = json.loads(actual.to_json())
    assert values["scores"]["boundary_iou"] == actual.boundary.miou
    assert values["boundary"]["pixels"] == values["settings"]["boundary_px"] == 2
    assert values["boundary"]["f1"]["water"] == pytest.approx(actual.boundary.f1[1], nan_ok=True)
    assert scores(values)["boundary_f1"] == actual.boundary.mf1, "these are the metrics of a registered model"
    text = markdown([actual])
    assert "within 2 px" in text
    assert f"| *mean of the scored* | {actual.boundary.miou:.4f} | {actual.boundary.mf1:.4f} |" in text
    without = evaluate(EvaluateRequest(model, shards.uri, "test", bootstrap=0))
    assert without.boundary is None
    assert "boundary" not in markdown([without])
    np.testing.assert_array_equal(without.confusion, actual.confusion)


def test_boundary_intervals_are_those_of_resampled_scenes(world) -> None:
    evaluation = evaluate(EvaluateRequest(*world, "test", bootstrap=200, boundary_px=2))
    low, high = evaluation.intervals["boundary_iou"]
    assert low <= evaluation.boundary.miou <= high
    assert f"{evaluation.boundary.miou:.4f} ({low:.3f}-{high:.3f})" in markdown([evaluation])
    scenes = np.random.default_rng(0).integers(1, 50, (5, 3, 7))
    scenes[:, :, 2] = scenes[:, :, :2].min(axis=2) // 2
    intervals = bootstrap_boundaries(scenes, (True, False, True), 300)
    draws = np.random.default_rng(0).multinomial(5, np.full(5, 1 / 5), 300)
    values = [
        boundary_scores(np.repeat(scenes, draw, axis=0).sum(0), (True, False, True)).mf1 for draw in draws
    ]
    np.testing.assert_allclose(intervals["boundary_f1"], np.quantile(values, [0.025, 0.975]))


@pytest.mark.parametrize(
    ("metres", "resolution", "pixels"), [(1.0, 0.5, 2), (1.3, 0.5, 3), (0.3, 0.5, 1), (10.0, 10.0, 1)]
)
def test_metres_are_whole_pixels(metres: float, resolution: float, pixels: int) -> None:
    assert boundary_pixels(None, metres, resolution, where="shards") == pixels
    assert boundary_pixels(pixels, None, None, where="shards") == pixels


def test_metres_without_a_resolution_are_refused_before_anything_is_counted(cut, monkeypatch) -> None:
    model, shards = cut
    monkeypatch.setattr(SplitPart, "batches", lambda *_: pytest.fail("counted"))
    card = replace(shards.card, ground_sampling_distance=None)
    monkeypatch.setattr(ShardSet, "open", lambda uri: replace(shards, card=card))
    with pytest.raises(ConfigError, match=r"resolution of .*shards is unknown.*evaluate\.boundary_px"):
        evaluate(EvaluateRequest(model, shards.uri, "test", boundary_m=2.0))
    with pytest.raises(ConfigError, match="less than half a pixel of shards, which is 2 m"):
        boundary_pixels(None, 0.5, 2.0, where="shards")
    with pytest.raises(ConfigError, match="boundary_px or boundary_m"):
        main([model, "--shards", shards.uri, "--split", "test", "--boundary-px", "2", "--boundary-m", "1"])


@pytest.mark.parametrize(
    ("words", "message"),
    [(["m"], "--shards URI and --split"), (["m", "evaluate.batch_size=2"], "name it with --recipe")],
)
def test_the_command_says_what_is_missing(words, message) -> None:
    with pytest.raises(ConfigError, match=message):
        main(words)


def test_everything_is_on_the_cpu_without_grad(world) -> None:
    predictor = load_model(world[0])
    labels = predictor.tensor_logits(torch.zeros(1, 3, 40, 40, dtype=torch.uint8)).argmax(1)
    assert labels.shape == (1, 40, 40)
    assert not labels.requires_grad


def test_a_temperature_changes_probabilities_alone(world, evaluation) -> None:
    """And it is the one at which the labels are most likely, on the split that it was fitted on."""
    request = EvaluateRequest(*world, "test", bootstrap=0)
    temperature = fit_temperature(request)
    assert temperature is not None
    assert temperature != 1
    tempered = evaluate(replace(request, temperature=temperature))
    np.testing.assert_array_equal(tempered.confusion, evaluation.confusion)
    assert tempered.uncalibrated_ece == evaluation.scores.ece
    assert tempered.scores.ece < tempered.uncalibrated_ece
    values = json.loads(tempered.to_json())
    assert values["scores"]["ece"] == values["calibration"]["ece"] == tempered.scores.ece
    assert values["calibration"]["ece_at_temperature_1"] == evaluation.scores.ece
    assert sum(row[0] for row in values["calibration"]["bins"]) == values["labelled_pixels"]
    text = markdown([tempered])
    assert f"Temperatures: {temperature:g} ({world[0]})." in text
    assert f"| {tempered.scores.ece:.4f} ({evaluation.scores.ece:.4f}) |" in text
    assert "no temperature" not in text
    assert markdown([evaluation]).count("has no temperature") == 1


def test_a_bundle_with_a_temperature_is_scored_at_it(world, tmp_path, evaluation) -> None:
    network, info = load_bundle(Path(world[0]))
    save_bundle(tmp_path, network, replace(info, temperature=2.5))
    actual = evaluate(EvaluateRequest(str(tmp_path), world[1], "test", bootstrap=0))
    assert actual.temperature == 2.5
    np.testing.assert_array_equal(actual.calibration[0], evaluation.calibration[1])
    assert actual.scores.ece == expected_calibration_error(actual.calibration[1]) != actual.uncalibrated_ece


def test_a_recipe_fits_the_temperature_on_val_and_scores_on_test(tmp_path, monkeypatch) -> None:
    shards = blobs(tmp_path / "shards", side=32)
    recipe = make_recipe(shards, **{"model.backbone": "test_convnext", "evaluate.bootstrap": 0})
    model = str(make_checkpoint(tmp_path / "model", shards, recipe))
    opened, real = [], SplitPart.batches

    def batches(part, on_progress=None):
        opened.append(part.split)
        return real(part, on_progress)

    monkeypatch.setattr(SplitPart, "batches", batches)
    actual = evaluate_recipe(recipe, model, calibrate=True)
    assert opened == ["val", "test"]
    val = EvaluateRequest(model, shards.uri, "val")
    assert actual.temperature == fit_temperature(val)
    assert evaluate_recipe(recipe, model).temperature is None

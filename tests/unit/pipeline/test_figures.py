"""Figures have the right type and show the data."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from d2ls.labels import ClassTable
from d2ls.metrics import BINS, score
from pipeline import figures

CLASSES = ClassTable.create(
    ["field", "a class with a very long name indeed", "water"], [(200, 180, 90), (40, 120, 50), (60, 110, 200)],
    [True, True, False],
)  # fmt: skip
RNG = np.random.default_rng(3)


def check(picture: np.ndarray) -> None:
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert picture.shape[2] == 3
    assert 100 < picture.shape[0] < 2500
    assert 100 < picture.shape[1] < 2500
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 5


def count(picture: np.ndarray, color: tuple[int, int, int]) -> int:
    return int((picture == np.array(color, dtype=np.uint8)).all(axis=-1).sum())


@pytest.mark.parametrize(("bands", "dtype"), [(3, "uint8"), (4, "uint16"), (1, "uint8"), (2, "float32")])
def test_prediction_sheet_takes_any_bands(bands: int, dtype: str) -> None:
    images = [
        RNG.integers(0, 200, (40, 50, bands)).astype(dtype),
        RNG.integers(0, 200, (700, 600, bands)).astype(dtype),
    ]
    labels = [RNG.integers(0, 3, image.shape[:2]).astype(np.uint8) for image in images]
    check(figures.prediction_sheet(images, labels, labels, CLASSES, ["one", "two"]))


def test_prediction_sheet_shows_errors_in_red_and_nothing_where_unlabelled() -> None:
    labels = np.zeros((60, 60), np.uint8)
    labels[:30] = 255
    right = figures.prediction_sheet(
        [np.zeros((60, 60, 3), np.uint8)], [labels], [np.zeros_like(labels)], CLASSES
    )
    wrong = figures.prediction_sheet(
        [np.zeros((60, 60, 3), np.uint8)], [labels], [np.ones_like(labels)], CLASSES
    )
    assert count(wrong, figures.ERROR) > count(right, figures.ERROR) + 5000
    assert count(right, figures.MISSING) > 5000


def test_confusion_and_bars_take_absent_classes() -> None:
    confusion = np.array([[50, 3, 0], [4, 90, 0], [0, 0, 0]])
    check(figures.confusion_figure(confusion, CLASSES))
    check(figures.class_bars(score(confusion, CLASSES.scored), CLASSES))
    check(figures.class_bars(score(np.zeros((3, 3), np.int64), CLASSES.scored), CLASSES))


@pytest.mark.parametrize("temperature", [None, 1.7])
def test_the_reliability_diagram_takes_empty_bins(temperature: float | None) -> None:
    calibration = np.zeros((2, BINS, 3), np.int64)
    check(figures.reliability_diagram(calibration, temperature))
    calibration[:, 9] = 40, 20, 40 * round(0.63 * 2**24)
    calibration[:, 14] = 90, 60, 90 * round(0.97 * 2**24)
    check(figures.reliability_diagram(calibration, temperature))


def test_distances_are_those_of_the_contrastive_term() -> None:
    dictionary = np.zeros((2, 2, 3))
    dictionary[0, 0, 0], dictionary[1, 0, 0] = 1.0, 3.0  # class 0: mean 2, deviation 1
    dictionary[:, 1, 1] = 4.0  # class 1: no deviation
    intra, inter = figures.dictionary_distances(dictionary)
    assert intra == pytest.approx((1 + 1 + 0 + 0) / 4)
    assert inter == pytest.approx(2.0**2 + 4.0**2)


@pytest.mark.parametrize("stages", [1, 2, 7])
def test_dictionary_map_of_any_depth(stages: int) -> None:
    check(
        figures.dictionary_map(
            [RNG.normal(size=(4, 3, 16)) for _ in range(stages)], RNG.normal(size=(3, 16)), CLASSES
        )
    )


def test_dictionary_map_of_one_image_and_equal_vectors() -> None:
    check(figures.dictionary_map([np.ones((1, 3, 16))], None, CLASSES))


@dataclass
class Trial:
    values: dict[str, Any]
    score: float | None


def test_sweep_figures_for_numbers_words_and_missing_scores() -> None:
    trials = [
        Trial({"model.stages": stages, "loss.contrastive": form, "train.lr": 10.0**-stages}, 0.1 * stages)
        for stages in (1, 2, 3) for form in ("none", "ratio")
    ]  # fmt: skip
    result = figures.sweep_figures(
        [*trials, Trial({"model.stages": 9}, None)], ["model.stages", "loss.contrastive"], "miou"
    )
    assert set(result) == {"model.stages", "loss.contrastive", "trials"}
    for picture in result.values():
        check(picture)
    many = [Trial({"train.lr": 10.0 ** -(1 + place / 4)}, place / 20) for place in range(16)]
    check(figures.sweep_figures(many, ["train.lr"], "miou")["train.lr"])
    assert figures.sweep_figures([Trial({"model.stages": 1}, None)], ["model.stages"], "miou") == {}


def test_drawing_touches_no_global_state() -> None:
    import sys

    check(figures.confusion_figure(np.eye(3, dtype=np.int64), CLASSES))
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()

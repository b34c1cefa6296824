"""Boundary IoU and boundary F1 against morphology by scipy and OpenCV."""

import math

import cv2
import numpy as np
import pytest
import torch
from scipy import ndimage

from d2ls.boundary import boundary_counts
from d2ls.metrics import boundary_scores

SQUARE = np.ones((3, 3), bool)


def blobs(seed, size=(40, 33), classes=4):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, classes, (6, 5)).astype(np.uint8)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_NEAREST)


def example():
    """Blobs, a noisy copy of them, and a strip, a hole and a frame without labels."""
    labels, rng = blobs(0), np.random.default_rng(1)
    predictions = np.roll(labels, (1, 2), (0, 1))
    noise = rng.random(labels.shape) < 0.03
    predictions[noise] = rng.integers(0, 4, noise.sum())
    labels[10:13], labels[25:30, 8:12], labels[:, -2:] = 255, 255, 255
    return predictions, labels


def grown(mask, distance):
    return ndimage.binary_dilation(mask, SQUARE, iterations=distance)


def count(predictions, labels, distance, classes=4):
    return boundary_counts(torch.from_numpy(predictions), torch.from_numpy(labels), classes, distance).numpy()


@pytest.mark.parametrize("distance", [1, 2, 5])
def test_counts_are_those_of_morphology(distance):
    predictions, labels = example()
    result = count(predictions, labels, distance)
    labelled = labels != 255
    for k in range(4):
        sides = []
        for ids in (predictions, labels):
            own, other = (ids == k) & labelled, (ids != k) & labelled
            sides.append((own & grown(other, distance), own & grown(other, 1)))
        (p_near, p_edge), (t_near, t_edge) = sides
        expected = [
            p_near, t_near, p_near & t_near, p_edge, p_edge & grown(t_edge, distance), t_edge,
            t_edge & grown(p_edge, distance),
        ]  # fmt: skip
        assert result[k].tolist() == [int(each.sum()) for each in expected]
        assert result[k].min() > 0


def test_boundary_iou_is_that_of_its_authors_away_from_the_edge():
    """Their code takes a mask less its erosion by a square of 3, d times."""

    def band(mask, distance):
        return mask - cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=distance)

    truth, result = np.zeros((60, 60), np.uint8), np.zeros((60, 60), np.uint8)
    cv2.circle(truth, (30, 28), 17, 1, -1)
    cv2.circle(result, (27, 30), 15, 1, -1)
    t, f = band(truth, 4) > 0, band(result, 4) > 0
    scores = boundary_scores(count(result, truth, 4, classes=2), (True, True))
    assert scores.iou[1] == pytest.approx((t & f).sum() / (t | f).sum())
    assert 0.1 < scores.iou[1] < 0.9


def test_a_prediction_right_on_all_labelled_pixels_is_perfect():
    _, labels = example()
    predictions = np.where(labels == 255, blobs(7), labels)
    scores = boundary_scores(count(predictions, labels, 3), (True,) * 4)
    assert scores.iou == scores.f1 == scores.precision == scores.recall == (1.0,) * 4
    assert scores.miou == scores.mf1 == 1


def test_f1_forgives_a_shift_up_to_the_distance():
    labels = np.zeros((30, 30), np.uint8)
    labels[:, 15:] = 1
    for shift, expected in ((0, 1.0), (2, 1.0), (3, 0.0)):
        scores = boundary_scores(
            count(np.roll(labels, shift, 1)[:, 8:22], labels[:, 8:22], 2, 2), (True, True)
        )
        assert scores.f1 == (expected, expected)


def test_labels_and_prediction_in_turn_swap_precision_and_recall():
    one, two = blobs(3), blobs(4)
    there, back = (boundary_scores(count(*pair, 2), (True,) * 4) for pair in ((one, two), (two, one)))
    assert there.precision == back.recall
    assert there.iou == back.iou
    assert there.f1 == pytest.approx(back.f1)


def test_a_class_without_a_boundary_has_no_value_and_one_that_is_missed_has_zero():
    labels, predictions = np.zeros((9, 9), np.uint8), np.zeros((9, 9), np.uint8)
    labels[:, :3] = 1
    scores = boundary_scores(count(predictions, labels, 2, classes=3), (True, True, True))
    assert scores.iou[:2] == scores.f1[:2] == (0.0, 0.0)
    assert math.isnan(scores.precision[1])
    assert scores.recall[1] == 0
    assert math.isnan(scores.iou[2])
    assert math.isnan(scores.f1[2])
    assert scores.miou == scores.mf1 == 0
    assert math.isnan(boundary_scores(count(predictions, predictions, 2, 3), (True,) * 3).miou)

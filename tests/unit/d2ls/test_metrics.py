"""Confusion matrix and scores."""

import math

import numpy as np
import pytest
import torch

from d2ls.errors import ConfigError, LabelError
from d2ls.metrics import confusion_matrix, score


@pytest.fixture
def ids():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, (3, 20, 17)).astype(np.uint8)
    labels[0, :4] = 255
    return rng.integers(0, 5, labels.shape).astype(np.uint8), labels


def test_confusion_counts_every_labelled_pixel(ids):
    predictions, labels = ids
    found = confusion_matrix(predictions, labels, 5)
    wanted = np.zeros((5, 5), np.int64)
    for p, t in zip(predictions.flat, labels.flat, strict=True):
        if t != 255:
            wanted[t, p] += 1
    np.testing.assert_array_equal(found, wanted)
    assert found.dtype == np.int64


def test_confusion_of_tensors_is_the_same(ids):
    predictions, labels = ids
    found = confusion_matrix(torch.from_numpy(predictions).long(), torch.from_numpy(labels), 5)
    assert found.dtype == torch.int64
    np.testing.assert_array_equal(found.numpy(), confusion_matrix(predictions, labels, 5))


def test_dataset_scores_come_from_one_matrix_not_from_means_over_images(ids):
    predictions, labels = ids
    each = [confusion_matrix(p, t, 5) for p, t in zip(predictions, labels, strict=True)]
    assert score(sum(each)) == score(confusion_matrix(predictions, labels, 5))


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
@pytest.mark.parametrize(("predictions", "labels"), [([0, 5], [0, 1]), ([0, 1], [0, 5]), ([0, -1], [0, 1])])
def test_unknown_ids_are_refused(kind, predictions, labels):
    with pytest.raises(LabelError, match=r"outside 0\.\.4"):
        confusion_matrix(kind(predictions), kind(labels), 5)
    with pytest.raises(LabelError, match="shape"):
        confusion_matrix(kind(predictions), kind(labels[:1]), 5)


def test_scores_of_absent_classes():
    """Class 1 is predicted but absent: 0. Class 2 is neither: no value. Class 3 is present, but never predicted: 0."""
    confusion = np.array([[6, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [2, 0, 0, 0]])
    found = score(confusion)
    assert found.iou[:2] == (0.6, 0.0)
    assert math.isnan(found.iou[2])
    assert math.isnan(found.f1[2])
    assert found.iou[3] == 0
    assert math.isnan(found.recall[1])
    assert math.isnan(found.precision[3])
    assert found.miou == pytest.approx(0.2)
    assert found.mf1 == pytest.approx(0.25)
    assert found.overall_accuracy == 0.6


def test_only_scored_classes_are_in_the_means():
    confusion = torch.tensor([[6, 2], [1, 1]])
    found = score(confusion, [True, False])
    assert found.miou == found.iou[0] == 6 / 9
    assert found.overall_accuracy == 0.7
    assert found.to_dict()["scored"] == [True, False]
    assert math.isnan(score(np.zeros((2, 2), np.int64)).miou)
    with pytest.raises(ConfigError, match="flags"):
        score(confusion, [True])

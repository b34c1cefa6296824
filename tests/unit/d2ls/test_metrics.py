"""Confusion matrix, calibration and scores."""

import math

import numpy as np
import pytest
import torch

from d2ls.errors import ConfigError, LabelError, NonFiniteOutputError
from d2ls.metrics import (
    BINS,
    calibration_counts,
    confusion_matrix,
    expected_calibration_error,
    score,
    winning_class,
)


@pytest.fixture
def ids():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, (3, 20, 17)).astype(np.uint8)
    labels[0, :4] = 255
    return rng.integers(0, 5, labels.shape).astype(np.uint8), labels


def test_confusion_counts_every_labelled_pixel(ids):
    predictions, labels = ids
    result = confusion_matrix(predictions, labels, 5)
    expected = np.zeros((5, 5), np.int64)
    for p, t in zip(predictions.flat, labels.flat, strict=True):
        if t != 255:
            expected[t, p] += 1
    np.testing.assert_array_equal(result, expected)
    assert result.dtype == np.int64


def test_confusion_of_tensors_is_the_same(ids):
    predictions, labels = ids
    result = confusion_matrix(torch.from_numpy(predictions).long(), torch.from_numpy(labels), 5)
    assert result.dtype == torch.int64
    np.testing.assert_array_equal(result.numpy(), confusion_matrix(predictions, labels, 5))


def test_dataset_scores_come_from_one_matrix_not_from_means_over_images(ids):
    predictions, labels = ids
    item = [confusion_matrix(p, t, 5) for p, t in zip(predictions, labels, strict=True)]
    assert score(sum(item)) == score(confusion_matrix(predictions, labels, 5))


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
    result = score(confusion)
    assert result.iou[:2] == (0.6, 0.0)
    assert math.isnan(result.iou[2])
    assert math.isnan(result.f1[2])
    assert result.iou[3] == 0
    assert math.isnan(result.recall[1])
    assert math.isnan(result.precision[3])
    assert result.miou == pytest.approx(0.2)
    assert result.mf1 == pytest.approx(0.25)
    assert result.overall_accuracy == 0.6


def test_only_scored_classes_are_in_the_means():
    confusion = torch.tensor([[6, 2], [1, 1]])
    result = score(confusion, [True, False])
    assert result.miou == result.iou[0] == 6 / 9
    assert result.overall_accuracy == 0.7
    assert result.to_dict()["scored"] == [True, False]
    assert math.isnan(score(np.zeros((2, 2), np.int64)).miou)
    with pytest.raises(ConfigError, match="flags"):
        score(confusion, [True])


@pytest.fixture
def logits():
    """Logits (6 5 16 12) of a network that is too sure, and labels that it often meets."""
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(6, 5, 16, 12, generator=generator)
    drawn = torch.rand(6, 1, 16, 12, generator=generator)
    labels = ((logits / 2).softmax(1).cumsum(1) < drawn).sum(1).clamp(max=4).to(torch.uint8)
    labels[:, :3] = 255
    return logits, labels


def brute_force_error(logits, labels, temperature):
    """Guo et al. (2017), equation 3, pixel by pixel."""
    bins = [[] for _ in range(BINS)]
    for pixel, label in zip(logits.movedim(1, -1).reshape(-1, 5).double(), labels.flatten(), strict=True):
        if label != 255:
            probabilities = (pixel / temperature).softmax(0)
            confidence = probabilities.max().item()
            place = next(b for b in range(BINS) if confidence <= (b + 1) / BINS + 1e-12)
            bins[place].append((confidence, float(probabilities.argmax() == label)))
    total = sum(map(len, bins))
    means = [(len(actual), *np.mean(actual, axis=0)) for actual in bins if actual]
    return sum(count / total * abs(accuracy - confidence) for count, confidence, accuracy in means)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_calibration_error_is_that_of_the_formula(logits, temperature):
    scores, labels = logits
    predictions, confidence = winning_class(scores, temperature)
    assert torch.equal(predictions, scores.argmax(1))
    counts = calibration_counts(confidence, predictions, labels).numpy()
    reference = brute_force_error(scores, labels, temperature)
    assert 0.01 < reference < 0.5
    assert expected_calibration_error(counts) == pytest.approx(reference, abs=1e-7)
    assert score(np.eye(5), calibration=counts).ece == expected_calibration_error(counts)
    assert counts[:, 0].sum() == (labels != 255).sum()


def test_calibration_counts_of_any_parts_add_up_to_the_last_bit(logits):
    scores, labels = logits
    predictions, confidence = winning_class(scores)
    whole = calibration_counts(confidence, predictions, labels)
    order = torch.randperm(labels.numel(), generator=torch.Generator().manual_seed(0))
    flat = (confidence.flatten()[order], predictions.flatten()[order], labels.flatten()[order])
    parts = zip(*(values.tensor_split([7, 8, 500]) for values in flat), strict=True)
    assert torch.equal(sum(calibration_counts(*part) for part in parts), whole)


def test_bins_hold_their_upper_edge():
    confidence = torch.tensor([1 / BINS - 1e-6, 1 / BINS + 1e-6, 0.5, 1.0, 0.0])
    counts = calibration_counts(
        confidence, torch.zeros(5, dtype=torch.int64), torch.zeros(5, dtype=torch.uint8)
    )
    assert counts[:, 0].nonzero().flatten().tolist() == [0, 1, 7, 14]
    assert counts[0].tolist() == [2, 2, round((1 / BINS - 1e-6) * 2**24)]
    assert math.isnan(expected_calibration_error(np.zeros((BINS, 3), np.int64)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_refused_where_a_pixel_is_labelled(logits, value):
    scores, labels = logits
    scores[2, 1, :5, 7] = value
    predictions, confidence = winning_class(scores)
    with pytest.raises(
        NonFiniteOutputError, match=rf"sample a: 2 of {6 * 13 * 12} labelled pixels have no prob"
    ):
        calibration_counts(confidence, predictions, labels, where="sample a")
    labels[2, :5] = 255
    calibration_counts(confidence, predictions, labels)

"""Losses and scores against formulas written out in full, and against recorded numbers."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from d2ls.losses import D2LSLoss, contrastive_ratio, infonce
from d2ls.metrics import confusion_matrix, score
from d2ls.models import D2LSOutput
from tests.named_weights import named_tensor

K = 6
RECORDED = [3.0906003, 0.6868784, 1.6159728, 5.8167796]


def batch():
    """Logits 2 K 12 10 and labels with ignored pixels; class 4 is absent."""
    logits = 2 * named_tensor("logits", (2, K, 12, 10))
    labels = ((named_tensor("labels", (2, 12, 10)) + 1.7) * 1.7).long().clamp(0, K - 1)
    labels[labels == 4] = 3
    labels[:, :3, :4] = 255
    return logits, labels


def plain_cross_entropy(logits, labels, smoothing):
    log = logits.log_softmax(1).movedim(1, -1)[labels != 255]
    kept = labels[labels != 255]
    own = -log[torch.arange(len(kept)), kept]
    return (1 - smoothing) * own - smoothing / logits.shape[1] * log.sum(1)


def plain_dice(logits, labels, smooth):
    losses = []
    probabilities = logits.softmax(1).movedim(1, -1)[labels != 255]
    kept = labels[labels != 255]
    for k in range(logits.shape[1]):
        p, t = probabilities[:, k], (kept == k).float()
        losses.append(
            1 - (2 * (p * t).sum() + smooth) / (p.sum() + t.sum() + smooth) if t.any() else p.sum() * 0
        )
    return torch.stack(losses).mean()


def test_golden_losses():
    logits, labels = batch()
    terms = D2LSLoss(contrastive="none")(D2LSOutput(logits), labels).terms
    torch.testing.assert_close(terms["cross_entropy"], plain_cross_entropy(logits, labels, 0.05).mean())
    torch.testing.assert_close(terms["dice"], plain_dice(logits, labels, 0.05))
    assert [float(terms[name]) for name in ("cross_entropy", "dice")] == pytest.approx(RECORDED[:2], rel=1e-5)


def test_golden_losses_as_published_divide_by_all_pixels():
    logits, labels = batch()
    result = D2LSLoss(contrastive="none", ignored_pixels="include")(D2LSOutput(logits), labels).terms
    expected = plain_cross_entropy(logits, labels, 0.05).sum() / labels.numel()
    torch.testing.assert_close(result["cross_entropy"], expected)


def test_golden_contrastive():
    vectors, static = named_tensor("dynamic", (5, K, 16)), named_tensor("static", (K, 16))
    means = vectors.mean(0)
    within = (vectors - means).pow(2).sum(-1).mean()
    between = torch.pdist(means).pow(2).mean()
    torch.testing.assert_close(contrastive_ratio(vectors), within / (between + 1e-6))
    result = [float(contrastive_ratio(vectors)), float(infonce(vectors, static, 0.1))]
    assert result == pytest.approx(RECORDED[2:], rel=1e-5)


FOREIGN = Path(os.environ.get("D2LS_GOLDENS", "/nonexistent")) / "losses_and_metrics.npz"


@pytest.mark.skipif(not FOREIGN.exists(), reason="D2LS_GOLDENS names no folder of goldens")
def test_golden_losses_and_scores_of_the_published_code():
    z = dict(np.load(FOREIGN))
    output = D2LSOutput(torch.from_numpy(z["logits"]))
    for labels, end in (("labels", ""), ("labels_with_ignore", "_with_ignore")):
        loss = D2LSLoss(contrastive="none", ignored_pixels="include")
        terms = loss(output, torch.from_numpy(z[labels])).terms
        assert float(terms["cross_entropy"]) == pytest.approx(float(z[f"soft_cross_entropy{end}"]), rel=4e-6)
        assert float(terms["dice"]) == pytest.approx(float(z[f"dice{end}"]), rel=4e-6)
    terms = D2LSLoss(contrastive="none")(output, torch.from_numpy(z["labels_with_ignore"])).terms
    assert float(terms["cross_entropy"]) == pytest.approx(3.1111414, rel=4e-6)
    ratio = contrastive_ratio(torch.from_numpy(z["dictionary"]))
    assert float(ratio) == pytest.approx(float(z["contrastive_ratio"]), rel=4e-6)
    confusion = confusion_matrix(z["prediction"], z["labels_with_ignore"], 6)
    np.testing.assert_array_equal(confusion, z["confusion"])
    scores = score(confusion)
    np.testing.assert_allclose(scores.iou, z["iou"])
    np.testing.assert_allclose(scores.f1, np.nan_to_num(z["f1"]))
    assert scores.overall_accuracy == pytest.approx(float(z["oa"]))

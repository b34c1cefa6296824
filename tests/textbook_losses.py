"""Loss terms as their papers define them, pixel by pixel and with sets, with no thought of cost. For small images."""

import torch

IGNORE = 255


def labelled(logits, labels):
    """Yields log probabilities (K) and class of each labelled pixel of K H W, with its row and column."""
    log = logits.double().log_softmax(0)
    for row, column in (labels != IGNORE).nonzero().tolist():
        yield log[:, row, column], int(labels[row, column]), row, column


def is_near_boundary(labels, row, column, distance):
    rows = range(max(0, row - distance), min(labels.shape[0], row + distance + 1))
    columns = range(max(0, column - distance), min(labels.shape[1], column + distance + 1))
    around = {int(labels[r, c]) for r in rows for c in columns} - {IGNORE}
    return len(around) > 1


def pixel_mean(logits, labels, value, class_weights=None, boundary=(1.0, 1), ignored_count=False):
    """The mean of value(log probabilities, class) over B K H W, weighted by class and near boundaries."""
    factor, distance = boundary
    total, weights = 0.0, 0.0
    for image, truth in zip(logits, labels, strict=True):
        for log, k, row, column in labelled(image, truth):
            own = 1.0 if class_weights is None else class_weights[k]
            near = factor if is_near_boundary(truth, row, column, distance) else 1.0
            total, weights = total + near * value(log, k), weights + near * own
        weights += float((truth == IGNORE).sum()) if ignored_count else 0.0
    return total / weights


def cross_entropy(smoothing=0.0, class_weights=None):
    """-w_k sum_c q_c log p_c with the smoothed target q of class k (Szegedy et al. 2016, section 7)."""

    def value(log, k):
        target = torch.full_like(log, smoothing / len(log))
        target[k] += 1 - smoothing
        return -(1.0 if class_weights is None else class_weights[k]) * (target * log).sum()

    return value


def focal(gamma, class_weights=None):
    """-alpha_t (1 - p_t)^gamma log p_t (Lin et al. 2017, equation 5)."""
    weights = class_weights or {}
    return lambda log, k: -(weights[k] if weights else 1.0) * (1 - log[k].exp()) ** gamma * log[k]


def by_image(logits, labels, value):
    """Mean over images with labels of the mean over classes they show of value(probabilities, truth), P each."""
    means = []
    for image, truth in zip(logits, labels, strict=True):
        kept = truth != IGNORE
        probabilities = image.double().softmax(0)[:, kept]
        shown = sorted(set(truth[kept].tolist()))
        if shown:
            means.append(sum(value(probabilities[k], truth[kept] == k) for k in shown) / len(shown))
    return sum(means) / len(means)


def tversky(alpha, beta):
    """1 - TP / (TP + alpha FP + beta FN) (Salehi et al. 2017, equation 4)."""

    def value(probabilities, truth):
        hit = probabilities[truth].sum()
        extra, missed = probabilities[~truth].sum(), (1 - probabilities[truth]).sum()
        return 1 - hit / (hit + alpha * extra + beta * missed)

    return value


def lovasz(probabilities, truth):
    """The Lovász extension of the Jaccard loss, equation 9 of Berman et al. 2018, from the set function itself.

    The loss of a set M of wrong pixels is |M| / |truth or M|, equation 6.
    """

    def jaccard_loss(wrong):
        return len(wrong) / len(wrong | own) if wrong else 0.0

    own = set(truth.nonzero().flatten().tolist())
    errors = torch.where(truth, 1 - probabilities, probabilities)
    total, wrong = 0.0, set()
    for pixel in errors.argsort(descending=True).tolist():
        more = wrong | {pixel}
        total = total + errors[pixel] * (jaccard_loss(more) - jaccard_loss(wrong))
        wrong = more
    return total

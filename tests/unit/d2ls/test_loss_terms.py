"""Each loss term against the formula of its paper, in value and gradient."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from d2ls.boundary import near_boundary
from d2ls.class_weights import class_weights
from d2ls.errors import ConfigError
from d2ls.losses import D2LSLoss
from d2ls.models import D2LSOutput
from tests import textbook_losses as textbook

K, WEIGHTS = 4, (0.5, 3.0, 0.0, 1.25)
NOTHING = {"cross_entropy_weight": 0.0, "dice_weight": 0.0, "contrastive": "none"}


def example():
    """Blobs of classes with a strip and an image without labels; class 2 is missing in the first image."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(3, K, 7, 6, generator=generator)
    labels = (
        torch.randint(0, K, (3, 3, 2), generator=generator).repeat_interleave(3, 1).repeat_interleave(3, 2)
    )
    labels = labels[:, :7]
    labels[0][labels[0] == 2] = 1
    labels[:, 2], labels[2] = 255, 255
    return logits, labels


def pixel(value, **options):
    return lambda logits, labels: textbook.pixel_mean(logits, labels, value, **options)


TERMS = {
    "cross_entropy": (
        {"cross_entropy_weight": 1.0, "label_smoothing": 0.1, "class_weights": WEIGHTS},
        pixel(textbook.cross_entropy(0.1, WEIGHTS), class_weights=WEIGHTS),
    ),
    "cross_entropy, boundary": (
        {"cross_entropy_weight": 1.0, "boundary_factor": 5.0, "boundary_px": 1, "class_weights": WEIGHTS},
        pixel(textbook.cross_entropy(0.05, WEIGHTS), class_weights=WEIGHTS, boundary=(5.0, 1)),
    ),
    "cross_entropy, ignored too": (
        {"cross_entropy_weight": 1.0, "ignored_pixels": "include", "class_weights": WEIGHTS},
        pixel(textbook.cross_entropy(0.05, WEIGHTS), class_weights=WEIGHTS, ignored_count=True),
    ),
    "focal": ({"focal_weight": 1.0, "focal_gamma": 2.0}, pixel(textbook.focal(2.0))),
    "focal, weighted": (
        {"focal_weight": 1.0, "focal_gamma": 0.5, "class_weights": WEIGHTS, "boundary_factor": 2.5, "boundary_px": 2},
        pixel(textbook.focal(0.5, WEIGHTS), class_weights=WEIGHTS, boundary=(2.5, 2)),
    ),
    "tversky": (
        {"tversky_weight": 1.0, "tversky_alpha": 0.2, "tversky_beta": 0.9},
        lambda logits, labels: textbook.by_image(logits, labels, textbook.tversky(0.2, 0.9)),
    ),
    "lovasz": (
        {"lovasz_weight": 1.0},
        lambda logits, labels: textbook.by_image(logits, labels, textbook.lovasz),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TERMS)
def test_a_term_is_what_its_paper_says(name):
    options, formula = TERMS[name]
    logits, labels = example()
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = D2LSLoss(**{**NOTHING, **options})(D2LSOutput(ours), labels)
    assert loss.terms.keys() == {name.split(",")[0]}
    loss.total.backward()
    expected = formula(theirs, labels)
    expected.backward()
    torch.testing.assert_close(loss.total, expected.float())
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)
    assert not ours.grad[:, :, 2].any(), "pixels without labels"
    assert ours.grad[0].any()


def test_class_weights_are_those_of_pytorch():
    logits, labels = example()
    loss = D2LSLoss(**{**NOTHING, "cross_entropy_weight": 1.0}, label_smoothing=0.0, class_weights=WEIGHTS)
    expected = F.cross_entropy(logits, labels, torch.tensor(WEIGHTS), ignore_index=255, reduction="mean")
    torch.testing.assert_close(loss(D2LSOutput(logits), labels).total, expected)


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_class_weights_do_not_change_which_probabilities_are_best(factor):
    """The best ones are the smoothed target, also where another class weighs 500 times as much."""
    labels = torch.tensor([[[0, 0, 0, 1, 255]]])
    target = F.one_hot(labels.where(labels != 255, 0), 3).movedim(-1, 1) * 0.95 + 0.05 / 3
    logits = target.log().requires_grad_()
    options = {"class_weights": (0.5, 250.0, 1.0), "boundary_factor": factor, "boundary_px": 1}
    loss = D2LSLoss(**{**NOTHING, "cross_entropy_weight": 1.0, **options})
    loss(D2LSOutput(logits), labels).total.backward()
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), rtol=0, atol=1e-6)


@pytest.mark.parametrize("term", ["cross_entropy", "focal"])
def test_pixels_of_a_class_without_weight_do_not_count(term):
    logits, labels = example()
    loss = D2LSLoss(**{**NOTHING, f"{term}_weight": 1.0}, class_weights=WEIGHTS)
    hidden = labels.masked_fill(labels == 2, 255)
    torch.testing.assert_close(loss(D2LSOutput(logits), labels).total, loss(D2LSOutput(logits), hidden).total)
    logits.requires_grad_()
    total = loss(D2LSOutput(logits), torch.full_like(labels, 2)).total
    total.backward()
    assert float(total.detach()) == 0
    assert not logits.grad.any()


def test_lovasz_is_the_jaccard_loss_of_certain_predictions():
    """On the corners of the cube the extension equals the set function: 1 - IoU of every class."""
    truth = torch.tensor([[[0, 0, 0, 1, 1, 1]]])
    predicted = torch.tensor([[[0, 0, 1, 1, 1, 0]]])
    logits = 200.0 * F.one_hot(predicted, 2).movedim(-1, 1)
    loss = D2LSLoss(**NOTHING, lovasz_weight=1.0)(D2LSOutput(logits), truth)
    assert float(loss.total) == pytest.approx(1 - 2 / 4)


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_terms_of_low_precision_logits_are_float32_and_finite(name, dtype):
    """Also where every pixel is certain, and right or wrong by a lot."""
    logits, labels = example()
    logits[0] = 1e4 * F.one_hot(labels[0].where(labels[0] != 255, 0), K).movedim(-1, 0)
    logits[1] = -3e4 * F.one_hot(labels[1].where(labels[1] != 255, 0), K).movedim(-1, 0)
    low = logits.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = D2LSLoss(**{**NOTHING, **TERMS[name][0]})(D2LSOutput(low), labels)
    loss.total.backward()
    assert loss.total.dtype == torch.float32
    assert loss.total.isfinite()
    assert low.grad.isfinite().all()


@pytest.mark.parametrize("name", TERMS)
def test_a_batch_without_labels_gives_zero(name):
    logits, labels = example()
    logits.requires_grad_()
    loss = D2LSLoss(**{**NOTHING, **TERMS[name][0]})(D2LSOutput(logits), torch.full_like(labels, 255))
    loss.total.backward()
    assert float(loss.total.detach()) == 0
    assert not logits.grad.any()


def test_the_static_branch_is_weighted_as_the_other():
    logits, labels = example()
    options = {"class_weights": WEIGHTS, "boundary_factor": 3.0, "contrastive": "none"}
    terms = D2LSLoss(**options)(D2LSOutput(logits, static_logits=logits), labels).terms
    torch.testing.assert_close(terms["static_cross_entropy"], terms["cross_entropy"])


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_pixel_is_near_a_boundary_where_its_square_shows_another_class(data):
    size = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 7)))
    ids = torch.tensor(
        data.draw(
            st.lists(
                st.sampled_from([0, 1, 254, 255]), min_size=size[0] * size[1], max_size=size[0] * size[1]
            )
        )
    ).view(size)
    distance = data.draw(st.integers(1, 3))
    result = near_boundary(ids.to(torch.uint8)[None], distance)[0]
    for row in range(size[0]):
        for column in range(size[1]):
            expected = ids[row, column] != 255 and textbook.is_near_boundary(ids, row, column, distance)
            assert bool(result[row, column]) == expected


def test_labels_with_a_frame_or_hole_without_labels_have_no_boundary():
    ids = torch.full((1, 9, 9), 2)
    ids[:, :2], ids[:, 4:6, 5:7], ids[:, :, -1] = 255, 255, 255
    assert not near_boundary(ids, 3).any()


NAMES, PIXELS = ("road", "roof", "tree"), (100, 10_000, 1_000_000)


def test_inverse_weights():
    result = class_weights("inverse", NAMES, PIXELS)
    assert [result[0] / result[1], result[1] / result[2]] == pytest.approx([100, 100])
    assert sum(w * n for w, n in zip(result, PIXELS, strict=True)) == pytest.approx(sum(PIXELS))


@pytest.mark.parametrize("beta", [0.9, 0.9999, None])
def test_effective_weights(beta):
    result = class_weights("effective", NAMES, PIXELS, beta=beta)
    used = 1 - 3 / sum(PIXELS) if beta is None else beta
    expected = [(1 - used) / (1 - used**n) for n in PIXELS]
    assert [w / result[0] for w in result] == pytest.approx([w / expected[0] for w in expected], rel=1e-6)
    assert sum(w * n for w, n in zip(result, PIXELS, strict=True)) == pytest.approx(sum(PIXELS))


def test_effective_weights_lie_between_equal_and_inverse():
    """beta 0 makes one sample as good as many; beta near 1 tells them all apart."""
    equal, inverse = (class_weights("effective", NAMES, PIXELS, beta=beta) for beta in (1e-9, 1 - 1e-15))
    assert equal == pytest.approx((1, 1, 1))
    assert inverse == pytest.approx(class_weights("inverse", NAMES, PIXELS), rel=1e-3)
    assert all(map(math.isfinite, class_weights("effective", ("a",), (1,))))


def test_weights_by_name():
    assert class_weights({"tree": 2.5, "road": 0.0}, NAMES, PIXELS) == (0.0, 1.0, 2.5)
    assert class_weights("none", NAMES, PIXELS) is None


@pytest.mark.parametrize(
    ("choice", "pixels", "message"),
    [
        ({"car": 2.0}, PIXELS, "no class is called car; the classes are road, roof, tree"),
        ({"road": -1.0}, PIXELS, "not below 0"),
        ({"road": 0.0, "roof": 0.0, "tree": 0.0}, PIXELS, "one is above 0"),
        ({"road": math.nan}, PIXELS, "finite"),
        ("inverse", (5, 0, 0), "labelled roof, tree, so there is no frequency"),
        ("effective", (5, 0, 1), "labelled roof, so"),
    ],
)
def test_impossible_class_weights_are_refused(choice, pixels, message):
    with pytest.raises(ConfigError, match=message):
        class_weights(choice, NAMES, pixels)


@pytest.mark.parametrize(
    "values",
    [
        {"focal_gamma": -1.0},
        {"tversky_alpha": 0.0},
        {"boundary_px": 0},
        {"boundary_factor": 0.5},
        {"class_weights": (1.0, -1.0)},
        {"class_weights": (0.0, 0.0)},
        {"lovasz_weight": -0.5},
        {"cross_entropy_weight": 0.0, "dice_weight": 0.0},
    ],
)
def test_wrong_values_are_refused(values):
    with pytest.raises(ConfigError, match=next(iter(values)).removesuffix("_weight")):
        D2LSLoss(**values)

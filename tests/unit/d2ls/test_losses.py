"""Named loss terms on one process."""

import math

import pytest
import torch

from d2ls.errors import ConfigError
from d2ls.losses import D2LSLoss, contrastive_ratio, infonce
from d2ls.models import D2LSOutput

K, C = 4, 8


def example(batch=3):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    output = D2LSOutput(
        logits=draw(batch, K, 6, 5),
        static_logits=draw(batch, K, 6, 5),
        static_dictionary=draw(K, C),
        dynamic_dictionary=draw(batch, K, C),
    )
    labels = torch.randint(0, K, (batch, 6, 5), generator=generator)
    labels[:, 0] = 255
    return output, labels


@pytest.mark.parametrize("contrastive", ["none", "ratio", "infonce"])
def test_total_is_the_weighted_sum(contrastive):
    output, labels = example()
    loss = D2LSLoss(contrastive=contrastive, dice_weight=0.7, static_weight=0.3)(output, labels)
    assert loss.terms.keys() == loss.weights.keys()
    assert ("contrastive" in loss.terms) == (contrastive != "none")
    expected = sum(loss.weights[name] * term for name, term in loss.terms.items())
    torch.testing.assert_close(loss.total, expected)


def test_weight_of_contrastive_follows_its_kind():
    assert D2LSLoss(contrastive="ratio").weights["contrastive"] == 1.0
    assert D2LSLoss(contrastive="infonce").weights["contrastive"] == 0.1
    assert D2LSLoss(contrastive="infonce", contrastive_weight=0.5).weights["contrastive"] == 0.5


def test_absent_inputs_give_absent_terms():
    output, labels = example()
    loss = D2LSLoss()(D2LSOutput(output.logits), labels.to(torch.uint8))
    assert loss.terms.keys() == {"cross_entropy", "dice"}


def test_contrastive_of_a_static_dictionary_is_refused():
    output, labels = example()
    with pytest.raises(ConfigError, match="dynamic dictionary"):
        D2LSLoss()(output._replace(dynamic_dictionary=None), labels)


def test_no_labelled_pixel_gives_zero_and_finite_gradients():
    output, labels = example()
    logits = output.logits.requires_grad_()
    loss = D2LSLoss()(D2LSOutput(logits), torch.full_like(labels, 255))
    loss.total.backward()
    assert float(loss.total.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_ignored_pixels_get_no_gradient():
    output, labels = example()
    logits = output.logits.requires_grad_()
    D2LSLoss()(D2LSOutput(logits), labels).total.backward()
    assert not logits.grad[:, :, 0].any()
    assert logits.grad[:, :, 1:].any()


def test_contrastive_ratio_of_one_image_is_zero_and_of_two_is_not():
    output, _ = example()
    assert float(contrastive_ratio(output.dynamic_dictionary[:1])) == 0
    assert float(contrastive_ratio(output.dynamic_dictionary[:2])) > 0


def test_contrastive_infonce_falls_where_classes_agree_over_images():
    output, _ = example()
    static = output.static_dictionary
    apart, together = output.dynamic_dictionary, static.expand(3, -1, -1) + 0.01 * output.dynamic_dictionary
    assert float(infonce(together, static, 0.1)) < float(infonce(apart, static, 0.1))
    assert math.isfinite(float(infonce(apart[:1], static, 0.1)))


def test_contrastive_infonce_written_out():
    output, _ = example(2)
    unit = torch.nn.functional.normalize
    images, static = unit(output.dynamic_dictionary, dim=-1), unit(output.static_dictionary, dim=-1)
    values = []
    for image in range(2):
        candidates = torch.cat([images[1 - image], static])
        for k in range(K):
            log = (candidates @ images[image, k] / 0.2).log_softmax(0)
            values.append(-(log[k] + log[K + k]) / 2)
    result = infonce(output.dynamic_dictionary, output.static_dictionary, 0.2)
    torch.testing.assert_close(result, torch.stack(values).mean())


def test_contrastive_gradient_reaches_both_dictionaries():
    output, _ = example()
    dynamic, static = output.dynamic_dictionary.requires_grad_(), output.static_dictionary.requires_grad_()
    infonce(dynamic, static, 0.1).backward()
    assert dynamic.grad.abs().sum() > 0
    assert static.grad.abs().sum() > 0


def test_losses_are_float32_under_bf16():
    output, labels = example()
    low = output._replace(**{name: getattr(output, name).bfloat16() for name in output._fields[:4]})
    for contrastive in ("ratio", "infonce"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = D2LSLoss(contrastive=contrastive)(low, labels)
        assert all(
            term.dtype == torch.float32 and term.isfinite() for term in (*loss.terms.values(), loss.total)
        )
        expected = D2LSLoss(contrastive=contrastive)(output, labels)
        torch.testing.assert_close(loss.total, expected.total, rtol=0.02, atol=0.02)


def test_each_value_out_of_range_is_named_and_no_other():
    wrong = {"label_smoothing": 1.0, "focal_gamma": -1.0, "boundary_px": 0, "tversky_beta": math.nan}
    with pytest.raises(ConfigError) as error:
        D2LSLoss(**wrong)
    assert str(error.value) == (
        "label_smoothing is 1.0, it must be at least 0 and below 1; focal_gamma is -1.0, it must be at least 0; "
        "tversky_beta is nan, it must be above 0; boundary_px is 0, it must be at least 1"
    )
    with pytest.raises(ConfigError, match=r"^static_weight is -1, it must be finite and at least 0$"):
        D2LSLoss(static_weight=-1)
    with pytest.raises(ConfigError, match=r"^one of cross_entropy_weight, .*lovasz_weight must be above 0$"):
        D2LSLoss(cross_entropy_weight=0, dice_weight=0)
    with pytest.raises(ConfigError, match=r"class_weights .*nan.* must be finite"):
        D2LSLoss(class_weights=(1.0, math.nan))


@pytest.mark.parametrize(
    "values", [{"contrastive": "x"}, {"ignored_pixels": "x"}, {"label_smoothing": 1.0}, {"temperature": 0.0}]
)
def test_wrong_values_are_refused(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        D2LSLoss(**values)

"""The temperature of a model: found where the labels are most likely, applied without changing a label."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar

from d2ls.errors import NonFiniteOutputError
from d2ls.inference import Predictor, calibration
from d2ls.inference.calibration import TEMPERATURES, best_temperature, likelihood_slopes
from d2ls.inference.sliding_window import apply_temperature
from tests.inference_stubs import LocalStub, model_info


def drawn(temperature, seed=0):
    """Logits (2 5 40 30), and labels drawn from their probabilities at a temperature; some are 255."""
    generator = torch.Generator().manual_seed(seed)
    sure = 8 * torch.rand(2, 1, 40, 30, generator=generator)
    logits = sure * torch.randn(2, 5, 40, 30, generator=generator)
    chance = torch.rand(2, 1, 40, 30, generator=generator)
    labels = ((logits / temperature).softmax(1).cumsum(1) < chance).sum(1).clamp(max=4).to(torch.uint8)
    labels[0, :5] = 255
    return logits, labels


@pytest.mark.parametrize("temperature", [0.4, 1.0, 1.7, 5.0])
def test_the_temperature_is_where_the_labels_are_most_likely(temperature, monkeypatch):
    logits, labels = drawn(temperature)
    monkeypatch.setattr(calibration, "PIXELS_AT_ONCE", 700)
    result = best_temperature([likelihood_slopes(logits, labels)])

    def likelihood(value):
        return F.cross_entropy(logits.double() / value, labels.long(), ignore_index=255).item()

    best = minimize_scalar(likelihood, bounds=(0.1, 20), method="bounded", options={"xatol": 1e-6})
    assert result == pytest.approx(best.x, rel=5e-3)
    assert result == pytest.approx(temperature, rel=0.1)
    assert likelihood(result) == pytest.approx(best.fun, abs=1e-5)


def test_slopes_are_the_derivative_of_the_likelihood_and_parts_add_up():
    logits, labels = drawn(2.0)
    slopes = likelihood_slopes(logits, labels)
    inverse = torch.tensor(1 / TEMPERATURES, requires_grad=True)
    for place in (0, 11, -1):
        loss = F.cross_entropy(
            logits.double() * inverse[place], labels.long(), ignore_index=255, reduction="sum"
        )
        (gradient,) = torch.autograd.grad(loss, inverse)
        assert slopes[place] == pytest.approx(gradient[place].item(), rel=1e-4, abs=1e-2)
    assert (np.diff(slopes) < 0).all()
    parts = [likelihood_slopes(logits[i : i + 1], labels[i : i + 1]) for i in range(2)]
    np.testing.assert_allclose(np.sum(parts, axis=0), slopes, rtol=1e-6)
    assert best_temperature(parts) == best_temperature([slopes])


def test_unlabelled_data_gives_no_temperature_and_extremes_end_at_the_bounds():
    logits, labels = drawn(1.0)
    nothing = torch.full_like(labels, 255)
    assert best_temperature([likelihood_slopes(logits, nothing)]) is None
    with pytest.raises(NonFiniteOutputError, match="not finite"):
        best_temperature([likelihood_slopes(logits * torch.nan, labels)])
    right = logits.argmax(1)
    assert best_temperature([likelihood_slopes(logits, right)]) == TEMPERATURES[0]
    assert best_temperature([likelihood_slopes(logits, logits.argmin(1))]) == TEMPERATURES[-1]


def test_probabilities_at_a_temperature_are_the_softmax_of_divided_logits():
    logits, _ = drawn(1.0)
    result = apply_temperature(logits[0].softmax(0), 1.7)
    torch.testing.assert_close(result, (logits[0] / 1.7).softmax(0), atol=1e-6, rtol=1e-5)
    sharp = apply_temperature(logits[0].softmax(0), 1e-3)
    torch.testing.assert_close(sharp.amax(0).median(), torch.tensor(1.0))
    assert (apply_temperature(torch.zeros(4, 2, 2), 2.0) == 0).all()
    assert apply_temperature(logits, 1.0) is logits


@pytest.mark.parametrize("tta", ["none", "flips_scales"])
@pytest.mark.parametrize("temperature", [0.3, 3.0])
def test_labels_do_not_depend_on_the_temperature(tta, temperature):
    """Also where windows overlap and views are averaged."""
    image = np.random.default_rng(3).integers(0, 256, (70, 90, 3)).astype(np.uint8)
    info = dataclasses.replace(model_info(), temperature=temperature)
    plain, tempered = (Predictor(LocalStub(), about, tta=tta) for about in (model_info(), info))
    assert (plain.temperature, tempered.temperature) == (1.0, temperature)
    np.testing.assert_array_equal(tempered.predict(image), plain.predict(image))
    before, after = plain.probabilities(image), tempered.probabilities(image)
    expected = (torch.from_numpy(before).log() / temperature).softmax(0).numpy()
    np.testing.assert_allclose(after, expected, atol=1e-5)
    np.testing.assert_allclose(after.sum(0), 1, atol=1e-5)
    assert ((after.max(0) > before.max(0)) == (temperature < 1)).mean() > 0.99
    raw = torch.from_numpy(image[:32, :32]).permute(2, 0, 1)[None]
    scores = tempered.tensor_logits(raw)
    assert torch.equal(scores.argmax(1), plain.tensor_logits(raw).argmax(1))
    torch.testing.assert_close(scores.softmax(1), plain.tensor_probabilities(raw), atol=1e-6, rtol=1e-5)

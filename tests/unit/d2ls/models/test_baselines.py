"""Baselines: any size, every parameter used, the backbone that D2LS would have, losses without dictionary terms."""

import importlib.util
import json

import pytest
import torch

from d2ls.bundle import ModelInfo
from d2ls.errors import ConfigError
from d2ls.labels import ClassTable
from d2ls.losses import D2LSLoss
from d2ls.models import BASELINES, Baseline, build_model
from d2ls.models.saving import load_bundle, save_bundle
from d2ls.models.unetformer import GlobalLocalAttention, _average
from d2ls.training.optimizer import build_optimizer

TINY = {"architecture": "unet", "backbone": "test_convnext", "num_classes": 4}


def images(batch=2, bands=3, size=(64, 96)):
    return torch.randn(batch, bands, *size)


@pytest.mark.parametrize(
    ("architecture", "backbone"),
    [
        *((name, "test_convnext") for name in BASELINES),
        ("unet", "resnet18"),
        ("unet", "test_resnet"),
        *((name, "test_vit") for name in BASELINES),
    ],
)
def test_every_parameter_gets_a_gradient_at_odd_sizes(architecture, backbone):
    torch.manual_seed(0)
    model = build_model(architecture=architecture, backbone=backbone, num_classes=3).train()
    assert isinstance(model, Baseline)
    output = model(images(size=(50, 70)))
    assert output.logits.shape == (2, 3, 50, 70)
    output.logits.square().mean().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_losses_have_no_dictionary_terms_and_say_nothing():
    model = build_model(**TINY)
    labels = torch.randint(0, 4, (2, 64, 96))
    loss = D2LSLoss(contrastive="infonce")(model(images()), labels)
    assert set(loss.terms) == {"cross_entropy", "dice"}


def test_backbone_is_the_one_of_d2ls_in_names_weights_and_rates():
    torch.manual_seed(1)
    unet = build_model(**TINY)
    torch.manual_seed(1)
    other = build_model(backbone="test_convnext", num_classes=4)
    theirs = other.backbone.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in unet.backbone.state_dict().items())
    optimizer = build_optimizer(unet, lr=1e-3, backbone_lr_factor=0.1)
    counts = {group["lr_scale"]: len(group["params"]) for group in optimizer.param_groups}
    assert counts[0.1] == len(list(unet.backbone.parameters()))


def test_bundle_rebuilds_it(tmp_path):
    model = build_model(**TINY, bands=5).eval()
    info = ModelInfo(
        config=json.loads(json.dumps(model.config)), normalization=model.normalization.to_json(),
        classes=ClassTable.create(list("abcd"), [(n, n, n) for n in range(4)]), bands=tuple("rgbns"),
        dtype="uint8", window=64,
    )  # fmt: skip
    save_bundle(tmp_path, model, info)
    again, _ = load_bundle(tmp_path)
    x = images(bands=5)
    assert torch.equal(again(x).logits, model(x).logits)


def test_wrong_architecture_is_refused_with_what_is_allowed():
    with pytest.raises(ConfigError, match=r"'ynet'; allowed are d2ls, unetformer, unet"):
        build_model(**{**TINY, "architecture": "ynet"})


def test_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="baselines"):
        build_model(**TINY)
    assert isinstance(build_model(**{**TINY, "architecture": "unetformer"}), Baseline)


def test_unetformer_with_a_resnet18_has_the_parameters_of_the_paper():
    with torch.device("meta"):
        model = build_model(architecture="unetformer", backbone="resnet18", num_classes=6)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == 11.7


def test_unetformer_attends_within_windows_and_looks_across_their_borders():
    torch.manual_seed(0)
    attention = GlobalLocalAttention().eval()
    features = torch.randn(1, 64, 16, 24)
    moved = features.clone()
    moved[..., :8, :8] += 1
    with torch.no_grad():
        change = (attention._windows(moved) - attention._windows(features)).abs().amax((0, 1))
        assert change[:8, :8].min() > 1e-3
        assert change[8:].max() < 1e-5
        assert change[:, 8:].max() < 1e-5
        across = (attention(moved) - attention(features)).abs().amax((0, 1))
    assert across[:8, 8:].max() > 1e-3
    assert across[:, 20:].max() < 1e-5


def test_unetformer_averages_keep_places_and_edges():
    """A map of 3 x 12 in whole windows of 8 x 8."""
    ramp = torch.arange(16.0).expand(1, 1, 8, 16)
    torch.testing.assert_close(_average(ramp, (8, 1), (3, 12)), ramp[..., :3, :12])
    across = _average(ramp, (1, 8), (3, 12))
    assert across.shape == (1, 1, 3, 12)
    assert _average(ramp, (1, 8), (3, 16))[0, 0, 0, 15] == pytest.approx((12 + 13 + 14 + 5 * 15) / 8)
    torch.testing.assert_close(across[0, 0, 0, 3:8], ramp[0, 0, 0, 3:8] + 0.5)
    assert across[0, 0, 0, 0] == pytest.approx((0 * 4 + 1 + 2 + 3 + 4) / 8)

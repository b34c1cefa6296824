"""The builder: switches, backbones, weight files, normalisation."""

import io
import json
import re
import subprocess
import sys
import urllib.error

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from d2ls.errors import ConfigError, WeightsError
from d2ls.inference import Predictor
from d2ls.models import Normalization, backbone_normalization, build_model, load_published
from d2ls.models import backbone as backbone_file
from d2ls.models.attention import cheaper_route
from d2ls.models.backbone import RGB, _at_stride_16, fit_bands, rgb_places
from tests.inference_stubs import model_info

TINY = {"backbone": "convnext_atto", "num_classes": 4, "stages": 1}
SWITCHES = [
    {"stages": 0},
    {"stages": 6},
    {"dictionary": "static"},
    {"dictionary": "none"},
    {"static_branch": False},
    {"aggregator": False},
    {"freeze_backbone": True},
    {"bands": 5},
    {"num_classes": 20},
    {"drop_path": 0.1},
    {"embed_dim": 64, "heads": 4, "candidates": 2},
]
BACKBONES = [
    "convnext_atto",
    "convnextv2_atto",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "resnet18",
    "tf_efficientnetv2_b0",
    "mobilenetv3_small_100",
    "test_vit",
    "eva02_tiny_patch14_224",
]


def images(batch=2, bands=3, size=(64, 64)):
    return torch.randint(0, 256, (batch, bands, *size), dtype=torch.uint8)


def awake(model):
    """Gives parameters that start at zero (closing norms of residual blocks) a value, so that gradients pass."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def check_gradients(model, output):
    total = output.logits.square().mean()
    if output.static_logits is not None:
        total = total + output.static_logits.square().mean()
    total.backward()
    reference = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    without = {n for n in reference if (g := model.get_parameter(n).grad) is None or not g.abs().max() > 0}
    assert without == set()


@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_every_switch_gives_every_parameter_a_gradient(switch):
    torch.manual_seed(0)
    model = awake(build_model(**{**TINY, **switch})).train()
    bands, classes = model.config["bands"], model.config["num_classes"]
    output = model(images(bands=bands, size=(37, 50)))
    assert output.logits.shape == (2, classes, 37, 50)
    kind = model.config["dictionary"]
    assert (output.static_logits is not None) == (kind == "dynamic" and model.config["static_branch"])
    assert (output.static_dictionary is None) == (kind == "none")
    assert (output.dynamic_dictionary is not None) == (kind == "dynamic")
    assert len(output.dictionaries) == (0 if kind == "none" else model.config["stages"] + 2)
    check_gradients(model, output)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_gives_every_parameter_a_gradient(backbone):
    torch.manual_seed(0)
    model = awake(build_model(backbone=backbone, num_classes=3, stages=1)).train()
    for size in ((20, 33), (70, 90)):
        with torch.no_grad():
            assert model(images(size=size)).logits.shape == (2, 3, *size)
    check_gradients(model, model(images()))


def test_auxiliary_branch_follows_the_mode_unless_it_is_given():
    model = build_model(**TINY)
    x = images(1)
    assert model.train()(x).static_logits is not None
    assert model.train()(x, auxiliary=False).static_logits is None
    assert model.eval()(x).static_logits is None
    assert model.eval()(x, auxiliary=True).static_logits is not None


def test_auxiliary_branch_does_not_change_the_main_one():
    model = build_model(**TINY).eval()
    x = images(2)
    with torch.no_grad():
        torch.testing.assert_close(model(x).logits, model(x, auxiliary=True).logits)


def test_seed_decides_weights_and_config_rebuilds():
    torch.manual_seed(3)
    first = build_model(**TINY).state_dict()
    torch.manual_seed(3)
    model = build_model(**TINY)
    assert all(torch.equal(value, first[name]) for name, value in model.state_dict().items())
    again = build_model(**json.loads(json.dumps(model.config)))
    assert again.config == model.config
    again.load_state_dict(first)
    x = images(1)
    assert torch.equal(model.eval()(x).logits, again.eval()(x).logits)


def test_frozen_backbone_stays_in_evaluation_mode():
    model = build_model(**{**TINY, "backbone": "resnet18", "freeze_backbone": True}).train()
    assert model.training
    assert not any(module.training for module in model.backbone.trunk.modules())


@pytest.mark.parametrize(
    "switch", [{}, {"stages": 0}, {"dictionary": "none"}, {"aggregator": False}], ids=str
)
def test_icnr_lets_the_sub_pixels_of_a_pixel_start_equal(switch):
    torch.manual_seed(0)
    x = images(1, size=(64, 96))
    logits = {}
    for init in ("published", "icnr"):
        with torch.no_grad():
            logits[init] = build_model(**{**TINY, **switch}, upsampling_init=init).eval()(x).logits
    blocks = {init: value.unfold(2, 4, 4).unfold(3, 4, 4).flatten(4) for init, value in logits.items()}
    assert blocks["icnr"].std(-1).max() < 1e-5
    assert blocks["published"].std(-1).min() > 1e-3
    assert blocks["icnr"].mean(-1).std() > 1e-3


def test_bf16_autocast_is_close():
    torch.manual_seed(0)
    model = build_model(**TINY).train()
    x = images()
    reference = model(x).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(x)
    assert output.logits.dtype == torch.bfloat16
    assert float(((output.logits - reference).norm() / reference.norm()).detach()) < 0.05
    check_gradients(model, output)


def test_cheaper_route_is_absorbed_for_few_classes():
    assert [cheaper_route(k, 256, 8) for k in (2, 17, 18, 150)] == ["absorbed"] * 2 + ["projected"] * 2


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"backbone": "convnxt_atto"}, "convnext_atto"),
        ({"backbone": "cait_xxs24_224"}, "strides .* VisionTransformer and Eva"),
        ({"stages": 7}, "0 to 6"),
        ({"num_classes": 1}, "2 classes"),
        ({"dictionary": "magic"}, "dynamic, static, none"),
        ({"candidates": 1}, "candidates"),
        ({"upsampling_init": "zeros"}, "icnr, published"),
        ({"embed_dim": 100}, "multiple"),
        ({"pretrained": True, "weights": "a.pth"}, "both"),
        ({"bands": 4, "rgb": (1, 2, 4)}, "bands 0 to 3"),
        ({"bands": 2, "normalization": {"mean": [0.0], "std": [1.0]}}, "bands"),
    ],
)
def test_wrong_values_are_refused(values, part):
    with pytest.raises(ConfigError, match=part):
        build_model(**{**TINY, **values})


def test_a_plain_transformer_stays_frozen_while_its_pyramid_learns():
    model = build_model(**{**TINY, "backbone": "test_vit", "freeze_backbone": True}).train()
    assert not any(module.training for module in model.backbone.trunk.modules())
    assert all(module.training for module in model.backbone.neck.modules())
    model(images()).logits.square().mean().backward()
    assert all(parameter.grad is None for parameter in model.backbone.trunk.parameters())
    assert all(parameter.grad is not None for parameter in model.backbone.neck.parameters())


@pytest.mark.parametrize("architecture", ["d2ls", "fpn"])
def test_a_plain_transformer_maps_a_scene_by_windows(architecture):
    torch.manual_seed(0)
    model = build_model(**{**TINY, "backbone": "test_vit", "architecture": architecture})
    scene = np.random.default_rng(0).integers(0, 256, (70, 101, 3), dtype=np.uint8)
    predictor = Predictor(model, model_info(window=64), device="cpu")
    probabilities = predictor.probabilities(scene)
    assert probabilities.shape == (4, 70, 101)
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)


def test_the_map_of_a_plain_transformer_comes_after_its_last_norm_at_the_right_positions():
    """Maps of 14 x 14 patches are resized to 16 x 16 pixels, at the same places of the image."""
    torch.manual_seed(0)
    backbone = build_model(**{**TINY, "backbone": "test_vit"}).eval().backbone
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        tokens = backbone.trunk.forward_features(x)[:, backbone.trunk.num_prefix_tokens :]
        expected = backbone.neck(tokens.mT.unflatten(2, (4, 6)))
        for ours, theirs, stride in zip(backbone(x), expected, (4, 8, 16, 32), strict=True):
            assert ours.shape == (1, 256, 64 // stride, 96 // stride)
            torch.testing.assert_close(ours, theirs)
    centres = 14 * torch.arange(10.0) + 7
    resized = _at_stride_16(centres.expand(1, 1, 7, 10), 14, torch.empty(1, 3, 96, 128))
    torch.testing.assert_close(resized, (16 * torch.arange(8.0) + 8).expand(1, 1, 6, 8))


@pytest.mark.parametrize("kind", ["whole", "ours"])
@pytest.mark.parametrize("bands", [3, 4])
def test_backbone_weights_from_a_file(tmp_path, kind, bands):
    source = timm.create_model("convnext_atto", features_only=kind == "ours")
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(source.state_dict(), path)
    model = build_model(**TINY, weights=str(path), bands=bands)
    x = torch.randn(1, 3, 64, 64)
    if bands == 3:
        source = timm.create_model("convnext_atto", features_only=True) if kind == "whole" else source
        trunk = {n.replace("_", "."): v for n, v in model.backbone.trunk.state_dict().items()}
        saved = {n.replace("_", "."): v for n, v in safetensors.torch.load_file(path).items()}
        assert all(torch.equal(value, saved[name]) for name, value in trunk.items())
    assert model(x[:, :1].expand(-1, bands, -1, -1)).logits.shape == (1, 4, 64, 64)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("way", ["timm", "file"])
def test_more_bands_keep_the_pretrained_filters_of_red_green_and_blue(tmp_path, monkeypatch, backbone, way):
    three = build_model(**{**TINY, "backbone": backbone}).eval().backbone
    rgb, values = (3, 1, 2), {**TINY, "backbone": backbone, "bands": 5, "rgb": (3, 1, 2)}
    if way == "file":
        safetensors.torch.save_file(three.trunk.state_dict(), tmp_path / "a.safetensors")
        values["weights"] = str(tmp_path / "a.safetensors")
    else:
        create = timm.create_model

        def fetched(*words, pretrained=False, **options):
            network = create(*words, **options)
            if pretrained:
                network.load_state_dict(three.trunk.state_dict(), strict=False)
            return network

        monkeypatch.setattr("timm.create_model", fetched)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # timm is asked, not the hub
        values["pretrained"] = True
    five = build_model(**values).eval().backbone
    if five.neck is not None:
        five.neck.load_state_dict(three.neck.state_dict())
    (stem,) = [name for name, value in five.trunk.named_parameters() if value.shape[1:2] == (5,)]
    assert torch.equal(five.trunk.state_dict()[stem][:, list(rgb)], three.trunk.state_dict()[stem])
    x = torch.randn(1, 3, 64, 64)
    padded = torch.zeros(1, 5, 64, 64)
    padded[:, list(rgb)] = x
    with torch.no_grad():
        for ours, theirs in zip(five(padded), three(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_pretrained_weights_that_cannot_be_fitted_to_the_bands_are_refused():
    """A stem may rearrange the image before its convolution, as in TResNet: 48 channels from three bands."""
    weights = build_model(**{**TINY, "backbone": "test_resnet"}).backbone.trunk.state_dict()
    backbone = build_model(**{**TINY, "backbone": "test_resnet", "bands": 5}).backbone
    stem = next(iter(weights))
    with pytest.raises(ConfigError, match=rf"test_resnet.*cannot be fitted to 5 bands \({stem}\)"):
        backbone._load_three_bands({**weights, stem: torch.zeros(16, 48, 3, 3)})


def test_bands_are_fitted_so_that_equal_ones_give_about_what_grey_gave():
    weight = torch.randn(8, 3, 7, 7)
    grey = weight.sum(1)
    for bands, rgb, factor in (
        (1, (), 1),
        (2, (), 1),
        (3, (), 1),
        (4, (), 1),
        (13, (), 1),
        (4, RGB, 4 / 3),
        (13, RGB, 4 / 3),
    ):
        torch.testing.assert_close(fit_bands(weight, bands, rgb).sum(1), factor * grey, rtol=1e-4, atol=1e-4)
    assert fit_bands(weight, 13, RGB)[:, 3:].std() > 0
    assert rgb_places(("NIR", "Blue", "Red", "Green")) == (2, 3, 1)
    assert rgb_places(("nir", "red", "green", "swir")) == ()


def test_timm_translates_the_names_of_the_original_authors(tmp_path):
    """Uses `checkpoint_filter_fn` of timm's module of the architecture, which is not documented."""
    source = {n: torch.randn_like(v) for n, v in timm.create_model("convnext_atto").state_dict().items()}
    names = {"conv_dw": "dwconv", "mlp.fc1": "pwconv1", "mlp.fc2": "pwconv2"}
    theirs = {}
    for name, value in source.items():
        name = re.sub(r"^stem\.", "downsample_layers.0.", name)
        name = re.sub(r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1.", name)
        name = re.sub(r"\.blocks\.", ".", name)
        for ours, original in names.items():
            name = name.replace(ours, original)
        theirs[name.replace("head.norm", "norm").replace("head.fc", "head")] = value
    torch.save({"model": theirs}, tmp_path / "weights.pth")
    trunk = build_model(**TINY, weights=str(tmp_path / "weights.pth")).backbone.trunk.state_dict()
    flat = {name.replace(".", "_"): value for name, value in source.items()}
    assert all(torch.equal(value, flat[name.replace(".", "_")]) for name, value in trunk.items())


def test_an_entry_that_only_the_pretraining_used_is_left_out(tmp_path):
    source = timm.create_model("test_vit").state_dict()
    torch.save({**source, "mask_token": torch.zeros(1, 64)}, tmp_path / "dinov2.pth")
    values = {**TINY, "backbone": "test_vit"}
    trunk = build_model(**values, weights=str(tmp_path / "dinov2.pth")).backbone.trunk.state_dict()
    assert all(torch.equal(value, source[name]) for name, value in trunk.items())
    torch.save({**source, "surprise": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="not ours: surprise"):
        build_model(**values, weights=str(tmp_path / "other.pth"))


@pytest.mark.parametrize("by_order", [False, True])
def test_weights_of_a_network_that_timm_wraps_as_a_whole(tmp_path, by_order):
    source = timm.create_model("mvitv2_tiny").state_dict()
    torch.save(source, tmp_path / "weights.pth")
    values = {**TINY, "backbone": "mvitv2_tiny", "weights": str(tmp_path / "weights.pth")}
    backbone = build_model(**values, weights_by_order=by_order).backbone
    names = {name: name.removeprefix("model.") for name in backbone.trunk.state_dict()}
    assert set(names) != set(names.values())
    assert all(torch.equal(v, source[names[n]]) for n, v in backbone.trunk.state_dict().items())


def test_backbone_weights_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": timm.create_model("convnext_femto").state_dict()}, path)
    with pytest.raises(WeightsError, match=r"weights.pth does not fit.*other shape: stem_0.weight"):
        build_model(**TINY, weights=str(path))
    torch.save({"stem.weight": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"missing: stem_0.weight.*not ours: stem.weight"):
        build_model(**TINY, weights=str(path))
    path.write_bytes(b"nonsense")
    with pytest.raises(WeightsError, match="cannot be read"):
        build_model(**TINY, weights=str(path))


def test_weights_under_other_names_are_matched_by_order_where_that_is_asked_for(tmp_path):
    source = timm.create_model("test_efficientnet").state_dict()
    theirs = {f"_layer{n}.{name.rpartition('.')[2]}": value for n, (name, value) in enumerate(source.items())}
    path = str(tmp_path / "other.pth")
    values = {**TINY, "backbone": "test_efficientnet", "weights": path}
    torch.save(theirs, path)
    with pytest.raises(WeightsError, match=r"not ours: _layer0\.weight"):
        build_model(**values)
    trunk = build_model(**values, weights_by_order=True).backbone.trunk.state_dict()
    assert all(torch.equal(value, source[name]) for name, value in trunk.items())
    stem, *names = theirs
    torch.save({name: theirs[name] for name in names}, path)
    with pytest.raises(WeightsError, match=rf"{len(names)} entries, the network {len(theirs)}"):
        build_model(**values, weights_by_order=True)
    torch.save({name: theirs[name] for name in (*names, stem)}, path)
    with pytest.raises(WeightsError, match="another network"):
        build_model(**values, weights_by_order=True)
    torch.save({**theirs, stem: torch.zeros(1, 3, 3, 3)}, path)
    with pytest.raises(WeightsError, match=r"other shape: conv_stem.weight \(1, 3, 3, 3\)"):
        build_model(**values, weights_by_order=True)
    safetensors.torch.save_file(theirs, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="keeps no order"):
        build_model(**{**values, "weights": str(tmp_path / "other.safetensors")}, weights_by_order=True)


def test_load_published_refuses_what_is_left_over():
    model = build_model(**TINY)
    with pytest.raises(WeightsError, match="not of the published network"):
        load_published(model, {"decoder.surprise": torch.zeros(1)})
    with pytest.raises(WeightsError, match="missing: backbone"):
        load_published(model, {"decoder.token.basic_queries.weight": model.head.static.vectors})
    with pytest.raises(WeightsError, match=r"other shape: aggregator.projections.0.weight \(40, 256\)"):
        load_published(model, {"linear_c.0.proj.weight": torch.zeros(40, 256)})


def test_normalization():
    norm = Normalization((0.5, 0.25), (0.1, 0.2), max_value=100)
    pixels = torch.tensor([[[[50]], [[45]]]], dtype=torch.uint8)
    torch.testing.assert_close(norm(pixels), torch.tensor([[[[0.0]], [[1.0]]]]))
    assert norm(pixels.to(torch.uint16)).dtype == torch.float32
    assert not norm.state_dict()
    again = Normalization.from_json(json.loads(json.dumps(norm.to_json())))
    assert torch.equal(again.std, norm.std)
    assert isinstance(norm, nn.Module)
    assert backbone_normalization("convnext_tiny").to_json()["mean"] == [0.485, 0.456, 0.406]
    with pytest.raises(ConfigError, match="std"):
        Normalization((0.5,), (0.0,))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_the_network_takes_raw_pixels(dtype):
    """Pixels of any type. It normalises them itself and pads afterwards, so the padding is the mean."""
    model = build_model(**TINY).eval()
    raw = images(1, size=(37, 50))
    normalized = torch.nn.functional.pad(model.normalization(raw), (0, 2, 0, 3))
    maps = model.backbone(normalized)
    expected = model.head(model.aggregator(maps), maps[-1], False).logits[..., :37, :50]
    torch.testing.assert_close(model(raw.to(dtype)).logits, expected)


def test_metrics_and_labels_import_no_torch():
    code = "import sys, d2ls, d2ls.metrics, d2ls.labels; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_normalization_of_float_images_clips_to_the_scale_and_takes_nan_for_the_mean():
    norm = Normalization((0.2, -10.0), (0.1, 4.0), 1.0, scale=((0, 0.5), (-25, 0)))
    images = torch.tensor([[0.3, -1.0, 9.0, torch.nan], [-14.0, -40.0, 3.0, -10.0]]).view(1, 2, 1, 4)
    expected = torch.tensor([[1.0, -2.0, 3.0, 0.0], [-1.0, -3.75, 2.5, 0.0]]).view(1, 2, 1, 4)
    torch.testing.assert_close(norm(images), expected)
    again = Normalization.from_json(json.loads(json.dumps(norm.to_json())))
    torch.testing.assert_close(again(images), expected)
    filled = norm.fill_missing(images)
    torch.testing.assert_close(filled[0, 0, 0], torch.tensor([0.3, 0.0, 0.5, 0.2]))
    torch.testing.assert_close(norm(filled), expected)
    for scale in (((0, 1),), ((0, 1), (1, 1))):
        with pytest.raises(ConfigError, match="lowest and a higher"):
            Normalization((0, 0), (1, 1), 1.0, scale)


def test_weights_that_cannot_be_fetched_are_named_with_both_ways_out(monkeypatch):
    def unreachable(*_, **__):
        raise FileNotFoundError("cannot find the requested files in the local cache")  # as the hub says

    backbone_file._patch("convnext_atto")  # describes it by timm.create_model, once
    monkeypatch.setattr("timm.create_model", unreachable)
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO())  # the hub answers
    with pytest.raises(
        WeightsError, match=r"convnext_atto.*local cache.*model\.weights.*model\.pretrained=false"
    ):
        build_model(backbone="convnext_atto", num_classes=2, pretrained=True)


def test_a_hub_that_cannot_be_reached_is_not_asked_again(monkeypatch, tmp_path):
    """Without internet the library would try for about a minute; cached weights are taken."""

    def refused(request, timeout):
        raise urllib.error.URLError("no route to host")

    asked = []
    monkeypatch.setattr("urllib.request.urlopen", refused)
    monkeypatch.setattr("timm.create_model", lambda name, **options: asked.append(options))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, file: None)
    with pytest.raises(WeightsError, match=r"cannot be reached: .*no route to host.*model\.weights"):
        backbone_file._create("test_resnet", bands=3, pretrained=True, drop_path=0.0, plain=False)
    assert asked == []
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, file: f"/cache/{file}")
    backbone_file._create("test_resnet", bands=3, pretrained=True, drop_path=0.0, plain=False)
    assert asked[0]["pretrained_cfg_overlay"] == {"file": "/cache/model.safetensors"}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    backbone_file._create("test_resnet", bands=3, pretrained=True, drop_path=0.0, plain=False)
    assert "pretrained_cfg_overlay" not in asked[1]

"""A network as a compiled program and as a file: its content, and refused inputs."""

import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from d2ls.errors import ConfigError, WeightsError
from d2ls.models import build_model, export
from d2ls.models.export import check_target, export_model
from tests.inference_stubs import Output, Scale, model_info


@pytest.mark.parametrize("classes", [4, 20])
def test_compile_of_the_head_has_no_graph_break(classes):
    torch.manual_seed(0)
    model = build_model(backbone="convnext_atto", num_classes=classes, stages=1).train()
    maps = [item.detach() for item in model.backbone(torch.randn(2, 3, 64, 64))]

    def head(maps):
        return model.head(model.aggregator(maps), maps[-1], True)

    def run(function):
        model.zero_grad()
        output = function(maps)
        (output.logits.square().mean() + output.static_logits.square().mean()).backward()
        return output, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    reference, reference_grads = run(head)
    torch._dynamo.reset()
    result, actual_grads = run(torch.compile(head, fullgraph=True, backend="aot_eager"))
    torch.testing.assert_close(result.logits, reference.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.static_logits, reference.static_logits, rtol=1e-4, atol=1e-5)
    assert reference_grads.keys() == actual_grads.keys()
    for name, grad in reference_grads.items():
        torch.testing.assert_close(actual_grads[name], grad, rtol=1e-3, atol=1e-5)


COMPILED_MODULATOR = """
import torch
from d2ls.models.dictionary import Modulator

torch.manual_seed(0)
network, deepest, gradients = Modulator(96, 4, embed_dim=32), torch.randn(3, 96, 2, 2), []
for function in (network, torch.compile(network)):
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        mixing = function(deepest)
    mixing.square().sum().backward()
    gradients.append(network.project.weight.grad.clone())
torch.testing.assert_close(*gradients, rtol=0.05, atol=1e-3)
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_gradients_in_bfloat16_are_the_eager_ones(tmp_path):
    """In its own process, with which the compiler's worker processes end; it leaves a folder in TMPDIR."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", COMPILED_MODULATOR], env=environment, check=True)


class Stub(torch.nn.Module):
    """One convolution over normalised pixels; takes raw ones."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.normalization = torch.nn.Conv2d(3, 4, 5, padding=2), Scale(255.0)

    def forward(self, images):
        return Output(self.conv(self.normalization(images)))


PIXELS = torch.randint(0, 256, (2, 3, 70, 81), generator=torch.Generator().manual_seed(1)).float()


def expected(network, pixels):
    with torch.no_grad():
        return network(pixels).logits.softmax(1)


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    target = tmp_path_factory.mktemp("onnx") / "new" / "model.onnx"
    assert export_model(Stub(), model_info(gsd=0.3, window=256), target) < 1e-4
    assert [file.name for file in target.parent.iterdir()] == ["model.onnx"]
    return target


def test_onnx_takes_raw_pixels_of_any_size(onnx_file):
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    assert [item.name for item in session.get_inputs()] == ["images"]
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert [item.shape for item in session.get_outputs()] == [["batch", 4, "height", "width"]]
    (result,) = session.run(["probabilities"], {"images": PIXELS.numpy()})
    torch.testing.assert_close(torch.from_numpy(result), expected(Stub(), PIXELS), rtol=1e-4, atol=1e-6)


def test_the_onnxruntime_of_the_plugin_deepness_reads_the_file(onnx_file):
    """Deepness installs onnxruntime 1.17.0 at most: up to format version 9 and operator set 20."""
    model = onnx.load(onnx_file)
    assert model.ir_version <= 9
    assert max(entry.version for entry in model.opset_import) <= 20


def test_onnx_holds_what_the_plugin_deepness_reads(onnx_file):
    model = onnx.load(onnx_file)
    texts = {entry.key: entry.value for entry in model.metadata_props}
    values = {name: json.loads(text) for name, text in texts.items()}
    description = values.pop("d2ls")
    assert values.pop("standardization_std") == pytest.approx([1 / 255] * 3)
    assert values == {
        "model_type": "Segmentor",
        "class_names": {"0": "ground", "1": "house", "2": "road", "3": "tree"},
        "resolution": 30.0,
        "tile_size": 256,
        "tiles_size": 256,
        "tiles_overlap": 25,
        "seg_thresh": 0.0,
        "seg_small_segment": 0,
        "standardization_mean": [0.0, 0.0, 0.0],
    }
    assert description["bands"] == ["red", "green", "blue"]


def test_pixels_as_the_plugin_deepness_scales_them_give_the_networks_probabilities(onnx_file):
    """Its arithmetic: divide by 255, standardise as the file says, channels first."""
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    mean, std = (np.float32(json.loads(metadata[f"standardization_{name}"])) for name in ("mean", "std"))
    tiles = PIXELS.numpy().astype(np.uint8).transpose(0, 2, 3, 1)
    batch = ((np.float32(tiles * 1.0 / 255.0) - mean) / std).transpose(0, 3, 1, 2)
    (result,) = session.run(None, {session.get_inputs()[0].name: batch})
    torch.testing.assert_close(torch.from_numpy(result), expected(Stub(), PIXELS), rtol=1e-4, atol=1e-6)


def test_the_tile_of_the_plugin_deepness_is_the_size_that_the_file_takes(tmp_path):
    target = tmp_path / "model.onnx"
    export_model(Stub(), model_info(window=256), target, size=96, checks=1)
    texts = {entry.key: entry.value for entry in onnx.load(target).metadata_props}
    assert json.loads(texts["tile_size"]) == json.loads(texts["tiles_size"]) == 96


def test_a_fixed_size_leaves_the_number_of_images_free(tmp_path):
    target = tmp_path / "model.pt2"
    export_model(Stub(), model_info(), target, size=72, checks=1)
    files = {"model.json": ""}
    run = torch.export.load(target, extra_files=files).module()
    assert json.loads(files["model.json"])["window"] == 32
    pixels = PIXELS[:, :, :, :72].repeat(2, 1, 2, 1)[:, :, :72]
    torch.testing.assert_close(run(pixels), expected(Stub(), pixels))
    with pytest.raises(Exception, match="72"):
        run(PIXELS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("backbone", ["test_vit", "eva02_tiny_patch14_224"])
@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_a_plain_transformer_is_exported_for_any_size(tmp_path, backbone, suffix):
    torch.manual_seed(0)
    network = build_model(backbone=backbone, num_classes=4, stages=1, embed_dim=64, heads=4)
    assert export_model(network, model_info(), tmp_path / f"model.{suffix}") < 1e-4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
@pytest.mark.parametrize(
    "options",
    [
        {"architecture": "unetformer", "backbone": "test_resnet"},
        {"architecture": "unet", "backbone": "test_vit"},
        {"dictionary": "none", "backbone": "test_convnext", "embed_dim": 64, "heads": 4},
    ],
    ids=lambda options: options.get("architecture", "none"),
)
def test_other_networks_are_exported_for_any_size(tmp_path, suffix, options):
    torch.manual_seed(0)
    network = build_model(num_classes=4, **options)
    assert export_model(network, model_info(), tmp_path / f"model.{suffix}", checks=6) < 1e-4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_upernet_is_exported_to_onnx_for_one_size(tmp_path):
    torch.manual_seed(0)
    network = build_model(architecture="upernet", backbone="test_resnet", num_classes=4)
    with pytest.raises(ConfigError, match=r"upernet is exported as \.onnx for images of one size.*--size 32"):
        export_model(network, model_info(), tmp_path / "model.onnx")
    assert export_model(network, model_info(), tmp_path / "model.onnx", size=96) < 1e-4
    assert export_model(network, model_info(), tmp_path / "model.pt2") < 1e-4


def test_a_program_that_differs_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_write_pt2", lambda program, info, file: lambda images: torch.zeros(1))
    with pytest.raises(WeightsError, match="differs from the network"):
        export_model(Stub(), model_info(), tmp_path / "model.pt2", checks=1)
    answers = iter([1.0, math.nan])  # the first check passes

    def run(images):
        return next(answers) * expected(Stub(), images)

    monkeypatch.setattr(export, "_write_pt2", lambda program, info, file: run)
    with pytest.raises(WeightsError, match="differs from the network by inf"):
        export_model(Stub(), model_info(), tmp_path / "model.pt2", checks=2)
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_refuses_a_size_is_not_kept(tmp_path, monkeypatch):
    def run(images):
        raise RuntimeError("Guard failed: images.size()[0] == 2")

    monkeypatch.setattr(export, "_write_pt2", lambda program, info, file: run)
    with pytest.raises(WeightsError, match=r"does not take images of shape .*Guard failed.*--size"):
        export_model(Stub(), model_info(), tmp_path / "model.pt2", checks=1)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_refused_first(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"model\.h5.*\.onnx or \.pt2"):
        check_target(tmp_path / "model.h5")
    with pytest.raises(ConfigError, match="64 pixels"):
        export_model(Stub(), model_info(), tmp_path / "model.pt2", size=32)
    monkeypatch.setitem(export.PACKAGES, ".onnx", ("onnx", "no_such_runtime"))
    with pytest.raises(ConfigError, match=r"no_such_runtime.*'\.\[export\]'"):
        check_target(tmp_path / "model.onnx")

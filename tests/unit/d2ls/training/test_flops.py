import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from d2ls.models import build_model
from d2ls.training.flops import peak_tflops, training_flops
from tests.tiny_trainer import SIZE, Recorder, make_trainer, tiny_shards


def test_a_convolution_is_counted_by_hand():
    class One(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 5, 3, padding=1)

        def forward(self, images, auxiliary):
            return self.conv(images)

    multiply_adds = 5 * 3 * 3 * 3 * 8 * 6
    assert training_flops(One(), (3, 8, 6)) == 3 * 2 * multiply_adds


@pytest.mark.parametrize("static_branch", [True, False])
def test_counting_leaves_no_trace(static_branch):
    network = build_model(
        backbone="test_resnet", num_classes=4, stages=1, embed_dim=32, heads=2, static_branch=static_branch
    )
    before = {name: tensor.clone() for name, tensor in network.train().state_dict().items()}
    random_state = torch.get_rng_state()
    small, large = (training_flops(network, (3, side, side)) for side in (32, 64))
    assert 3 < large / small < 5
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_run_tells_its_rate_and_trains_the_same(tmp_path):
    shards = tiny_shards(tmp_path / "shards")
    recorder, plain = Recorder(), Recorder()
    trainer = make_trainer(shards, callbacks=[recorder], epochs=1, sample_shape=(3, SIZE, SIZE))
    trainer.run()
    make_trainer(shards, callbacks=[plain], epochs=1).run()
    image = training_flops(trainer.network, (3, SIZE, SIZE))
    for report, other in zip(recorder.steps, plain.steps, strict=True):
        assert report.model_tflops * 1e12 == pytest.approx(4 * image / report.seconds["step"])
        assert report.mfu is None, "a CPU's peak is not known"
        assert report.terms == other.terms


@pytest.mark.parametrize("change", [{}, {"architecture": "fpn"}, {"backbone": "test_vit"}], ids=str)
def test_nothing_flows_back_through_a_frozen_backbone(change):
    options = {
        "backbone": "test_convnext",
        "num_classes": 4,
        "stages": 1,
        "embed_dim": 32,
        "heads": 2,
    } | change
    free, frozen = build_model(**options), build_model(**options, freeze_backbone=True)
    backbone = frozen.backbone
    with FlopCounterMode(display=False) as whole, torch.no_grad():
        backbone(torch.zeros(1, 3, 64, 64))
    with FlopCounterMode(display=False) as neck, torch.no_grad():
        if backbone.neck is not None:
            backbone.neck(torch.zeros(1, backbone.trunk.embed_dim, 4, 4))
    saved = 2 * (whole.get_total_flops() - neck.get_total_flops())
    assert training_flops(free, (3, 64, 64)) - training_flops(frozen, (3, 64, 64)) == saved > 0


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312.0),
        ("NVIDIA H100 PCIe", "tf32", 378.0),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.0),
        ("NVIDIA H100 NVL", "bf16", 835.0),
        ("NVIDIA L4", "bf16", 121.0),
        ("NVIDIA L40", "bf16", 181.0),
        ("NVIDIA L40S", "bf16", 362.0),
        ("NVIDIA A10", "fp32", 31.2),
        ("NVIDIA A10G", "fp32", 35.0),
        ("NVIDIA A1000", "bf16", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", None),
        ("something new", "bf16", None),
        ("", "bf16", None),
    ],
)
def test_peaks_are_those_of_the_device(name, precision, peak):
    assert peak_tflops(name, precision) == peak

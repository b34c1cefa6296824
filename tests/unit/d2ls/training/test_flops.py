import pytest
import torch

from d2ls.model import build_model
from d2ls.training.flops import peak_teraflops, training_flops
from tests.training_world import SIZE, Recorder, make_trainer, tiny_shards


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
    told, plain = Recorder(), Recorder()
    trainer = make_trainer(shards, callbacks=[told], epochs=1, sample_shape=(3, SIZE, SIZE))
    trainer.run()
    make_trainer(shards, callbacks=[plain], epochs=1).run()
    image = training_flops(trainer.network, (3, SIZE, SIZE))
    for report, other in zip(told.steps, plain.steps, strict=True):
        assert report.teraflops * 1e12 == pytest.approx(4 * image / report.seconds["step"])
        assert report.flop_share is None, "a CPU's peak is not known"
        assert report.terms == other.terms


def test_peaks_are_those_of_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    assert peak_teraflops(torch.device("cuda", 0), "bf16") == 312.0
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 PCIe")
    assert peak_teraflops(torch.device("cuda", 0), "tf32") == 378.0
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "something new")
    assert peak_teraflops(torch.device("cuda", 0), "bf16") is None
    assert peak_teraflops(torch.device("cpu"), "bf16") is None

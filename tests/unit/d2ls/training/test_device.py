"""The loop on a device that queues its work: same numbers as on the CPU, and no waiting within a step."""

import contextlib
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from d2ls.errors import NonFiniteLossError
from d2ls.losses import D2LSLoss
from d2ls.models import build_model
from d2ls.training.device import CudaDevice, Device, Stopwatch, open_device
from d2ls.training.update import WeightUpdate
from tests.fake_device import GARBAGE, FakeDevice
from tests.tiny_trainer import Recorder, assert_equal, make_trainer, tiny_shards, weights


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return tiny_shards(tmp_path_factory.mktemp("shards"))


class PoisonedInput(torch.nn.Module):
    """Normalises images, to NaN in some of its calls in training, counted from 0."""

    def __init__(self, normalization, *calls):
        super().__init__()
        self.normalization, self.calls, self.count = normalization, calls, 0

    def forward(self, images):
        poison = math.nan if self.training and self.count in self.calls else 1.0
        self.count += self.training
        return self.normalization(images) * poison

    def to_json(self):
        return self.normalization.to_json()


def trained(shards, device, *, poisoned=(), **options):
    recorder = Recorder()
    trainer = make_trainer(shards, device=device, callbacks=[recorder], backbone="test_resnet", **options)
    trainer.network.normalization = PoisonedInput(trainer.network.normalization, *poisoned)
    trainer.run()
    return trainer, recorder


def reported(recorder):
    return [(item.step, dict(item.terms), item.gradient_norm, item.learning_rate) for item in recorder.steps]


def test_a_device_that_runs_ahead_trains_the_same(shards, tmp_path):
    """Batches are copied late and values read late. A step is skipped; averages and Lookahead count only real steps."""
    options = {"ema": 0.9, "lookahead": True, "poisoned": (4,), "skip_non_finite": 1, "epochs": 2}
    options |= {"checkpoint_every_steps": 2}
    plain, heard = trained(shards, None, folder=tmp_path / "plain", **options)
    fake, recorder = trained(shards, FakeDevice(), folder=tmp_path / "fake", **options)
    assert_equal(weights(plain), weights(fake))
    assert fake.state == plain.state
    assert fake.optimizer.state_dict()["param_groups"] == plain.optimizer.state_dict()["param_groups"]
    assert fake.ema.updates == plain.ema.updates == fake.optimizer.param_groups[0]["steps"] == 5
    assert reported(recorder) == reported(heard)
    assert recorder.checkpoints == heard.checkpoints
    assert {"data", "forward", "backward", "optimizer", "step"} <= set(recorder.steps[0].seconds)
    assert recorder.steps[0].memory_bytes == 123


def test_the_host_waits_for_a_step_when_the_next_one_is_queued(shards):
    device = FakeDevice()
    trainer = make_trainer(shards, device=device, epochs=1)
    step, waited = trainer.optimizer.step, []
    trainer.optimizer.step = lambda: (waited.append(len(device.runtime.waits)), step())
    trainer.run()
    assert waited == [0, 1, 2], "before an optimizer step only the values of the previous step are known"
    assert all(behind > 0 for behind in device.runtime.waits[:-1]), "the device had more to do"


class Reads(TorchDispatchMode):
    """Records operations that make the host wait for a device: values read, and tensors from the host."""

    def __init__(self):
        self.calls = []
        super().__init__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = [item for item in args if isinstance(item, torch.Tensor)]
        moved = isinstance(result, torch.Tensor) and result.is_meta
        if "_local_scalar_dense" in str(function) or "nonzero" in str(function):
            self.calls.append(str(function))
        if moved and any(not item.is_meta and item.dim() for item in given):
            self.calls.append(str(function))
        return result


@pytest.mark.parametrize(
    ("backbone", "contrastive"), [("test_convnext", "ratio"), ("test_resnet", "infonce")]
)
def test_network_and_loss_read_nothing(backbone, contrastive, monkeypatch):
    """Runs on the meta device, which has no values (and no autocast)."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    with torch.device("meta"):
        network = build_model(backbone=backbone, num_classes=4, stages=1, embed_dim=32, heads=2).train()
        images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
        labels = torch.zeros(2, 64, 64, dtype=torch.uint8)
    with Reads() as reads:
        output = network(images)
        D2LSLoss(contrastive=contrastive, ignored_pixels="include")(output, labels).total.backward()
    assert reads.calls == []
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_step_reads_nothing(shards):
    trainer = make_trainer(shards, device=FakeDevice(), ema=0.9, lookahead=True, epochs=1)
    step = trainer._train_step

    def watched(*arguments):
        with Reads() as reads:
            step(*arguments)
        assert reads.calls == []

    trainer._train_step = watched
    trainer.run()


@pytest.mark.parametrize("device", [Device(torch.device("cpu")), FakeDevice()], ids=["cpu", "ahead"])
def test_a_step_that_is_not_finite_changes_nothing(shards, device, monkeypatch):
    trainer = make_trainer(shards, device=device, backbone="test_resnet", ema=0.9, skip_non_finite=1)
    trainer.network.normalization = PoisonedInput(trainer.network.normalization, 1)
    apply, states = WeightUpdate.apply, []

    def watched(update, terms, **options):
        values = apply(update, terms, **options)
        states.append(weights(trainer))
        return values

    monkeypatch.setattr(WeightUpdate, "apply", watched)
    trainer.run()
    assert trainer.state.skipped == 1
    assert_equal(states[1], states[0])
    moved = [name for name in states[1] if not torch.equal(states[2][name], states[1][name])]
    assert len(moved) > len(states[1]) / 2
    assert all(value.isfinite().all() for value in states[-1].values())


def test_a_late_error_names_the_step_it_is_about(shards):
    recorder = Recorder()
    trainer = make_trainer(shards, device=FakeDevice(), callbacks=[recorder])
    trainer.network.normalization = PoisonedInput(trainer.network.normalization, 1)
    with pytest.raises(NonFiniteLossError, match=r"step 2: .*total nan.*gradient_norm nan.*samples train_0"):
        trainer.run()
    assert [report.step for report in recorder.steps] == [1]


def test_the_fake_is_late():
    device = FakeDevice()
    start = device.now()
    read = device.reading(torch.ones(2))
    end = device.now()
    with pytest.raises(RuntimeError, match="not ready"):
        device.seconds(start, end)
    assert device._to_host(torch.ones(2)).tolist() == [GARBAGE] * 2
    assert read() == [1.0, 1.0]
    with pytest.raises(RuntimeError, match="not ready"):
        device.seconds(start, end)


def test_the_cpu_needs_no_waiting():
    device = open_device(torch.device("cpu"))
    watch = Stopwatch(device)
    with watch.part("forward"):
        pass
    with watch.part("forward"):
        pass
    assert not device.runs_ahead
    assert 0 <= watch.seconds()["forward"] < 1
    assert device.reading(torch.ones(1))() == [1.0]
    assert device.peak_memory() > 1e7


def test_on_cuda_batch_norm_over_ranks_is_pytorchs_own():
    """Layers with an activation inside keep it; the optimizer's parameters and a checkpoint's names stay."""
    network = build_model(backbone="test_efficientnet", num_classes=4, stages=1, embed_dim=32, heads=2)
    before, names = dict(network.named_parameters()), list(network.state_dict())
    plain = [type(layer).__name__ for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    assert "BatchNormAct2d" in plain
    assert CudaDevice.normalize_over_ranks(FakeDevice(), network) is network
    synced = [layer for layer in network.modules() if isinstance(layer, torch.nn.SyncBatchNorm)]
    assert len(synced) == len(plain)
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in network.modules())
    assert sum(hasattr(layer, "act") for layer in synced) == plain.count("BatchNormAct2d")
    assert all(parameter is before[name] for name, parameter in network.named_parameters())
    assert list(network.state_dict()) == names

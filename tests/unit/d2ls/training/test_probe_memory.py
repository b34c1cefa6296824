import logging

import pytest
import torch

from d2ls.errors import TrainingError
from d2ls.training.device import Device
from d2ls.training.probe_memory import fitting_micro_batch_size, probe_memory
from d2ls.training.process_group import ProcessGroup
from tests.fake_device import FakeDevice
from tests.tiny_trainer import Recorder, assert_equal, make_trainer, tiny_shards, weights

SHAPE = (3, 64, 64)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return tiny_shards(tmp_path_factory.mktemp("shards"))


def device_for(most):
    def attempt(size):
        if size > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return attempt


@pytest.mark.parametrize(("most", "result"), [(16, 12), (12, 12), (11, 6), (5, 3), (2, 1)])
def test_the_wanted_size_is_halved_until_it_fits(most, result, caplog):
    device = FakeDevice()
    with caplog.at_level(logging.WARNING):
        assert fitting_micro_batch_size(12, device_for(most), device, ProcessGroup()) == result
    assert (f"train.micro_batch_size={result}" in caplog.text) == (result < 12)
    assert device.runtime.emptied > 0


def test_a_device_too_small_for_one_sample_is_an_error():
    with pytest.raises(TrainingError, match=r"one sample.*crop_size"):
        fitting_micro_batch_size(4, device_for(0), FakeDevice(), ProcessGroup())


def test_libraries_have_their_own_words_for_a_full_device():
    def attempt(size):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    def broken(size):
        raise RuntimeError("shapes do not fit")

    assert not FakeDevice().fits(attempt, 1)
    with pytest.raises(RuntimeError, match="shapes"):
        FakeDevice().fits(broken, 1)
    assert Device(torch.device("cpu")).fits(broken, 1), "a CPU is not tried"


def everything(trainer):
    """Weights, buffers, optimizer, modes, gradients and random state."""
    network = trainer.network
    result = weights(trainer) | {f"buffer.{name}": value.clone() for name, value in network.named_buffers()}
    result |= {
        f"gradient.{name}": p.grad.clone() for name, p in network.named_parameters() if p.grad is not None
    }
    modes = [float(module.training) for module in network.modules()]
    return result | {"random": torch.get_rng_state(), "modes": torch.tensor(modes)}


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("restored", [True, False])
def test_a_probe_leaves_everything_as_it_was(shards, tmp_path, restored, fits):
    """With batch norm, before any training and after a restored checkpoint, also if memory is too small."""
    options = {"backbone": "test_resnet", "epochs": 1, "ema": 0.9}
    trainer = make_trainer(shards, tmp_path, **options)
    if restored:
        trainer.run()
        trainer = make_trainer(shards, tmp_path, **options)
        trainer.checkpointer.restore(trainer.network, trainer.optimizer, trainer.ema)
        for parameter in trainer.network.parameters():
            parameter.grad = torch.rand_like(parameter)
    device, network = FakeDevice(), trainer.network.eval()
    device.small_memory(network, 2 if fits else 1)
    before = everything(trainer)
    assert (
        device.fits(probe_memory(network, trainer.loss, trainer.optimizer, SHAPE, device, "fp32"), 2) == fits
    )
    assert_equal(everything(trainer), before)
    assert ("gradient.head.static.vectors" in before) == restored


def test_a_run_on_a_small_device_accumulates(shards, caplog):
    """The result equals that of a run with that micro-batch in its recipe."""
    runs = []
    for most, micro_batch_size in ((2, None), (99, 2)):
        device, recorder = FakeDevice(), Recorder()
        trainer = make_trainer(
            shards, device=device, callbacks=[recorder], epochs=1, backbone="test_resnet",
            micro_batch_size=micro_batch_size, sample_shape=SHAPE,
        )  # fmt: skip
        hook = device.small_memory(trainer.network, most)
        with caplog.at_level(logging.INFO):
            trainer.run()
        hook.remove()
        runs.append((weights(trainer), [dict(report.terms) for report in recorder.steps]))
    assert "going on with train.micro_batch_size=2" in caplog.text
    assert_equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]

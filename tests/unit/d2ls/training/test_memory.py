import logging

import pytest
import torch

from d2ls.errors import TrainingError
from d2ls.training.memory import fitting_micro_batch, rehearsal
from d2ls.training.ranks import Ranks
from tests.training_world import make_trainer, tiny_shards


def device_for(most):
    def attempt(size):
        if size > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return attempt


@pytest.mark.parametrize(("most", "found"), [(16, 12), (12, 12), (11, 6), (5, 3), (2, 1)])
def test_the_wanted_size_is_halved_until_it_fits(most, found, caplog):
    with caplog.at_level(logging.WARNING):
        assert fitting_micro_batch(12, device_for(most), Ranks()) == found
    assert (f"train.micro_batch={found}" in caplog.text) == (found < 12)


def test_a_device_too_small_for_one_sample_is_an_error():
    with pytest.raises(TrainingError, match=r"one sample.*crop_size"):
        fitting_micro_batch(4, device_for(0), Ranks())


def test_a_rehearsal_leaves_nothing_behind(tmp_path):
    trainer = make_trainer(tiny_shards(tmp_path / "shards"))
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    rehearsal(trainer.network, (3, 64, 64), Ranks(), "fp32")(2)
    assert all(parameter.grad is None for parameter in trainer.network.parameters())
    assert all(torch.equal(before[name], value) for name, value in trainer.network.state_dict().items())

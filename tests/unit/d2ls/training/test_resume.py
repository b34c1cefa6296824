"""A run that stops anywhere and goes on equals one that never stopped, to the last bit."""

import pytest
import torch

from tests.training_world import Recorder, StopAfter, assert_equal, make_trainer, tiny_shards, weights


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return tiny_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("stop", "done"), [(3, 2), (4, 3), (6, 5)])
def test_a_resumed_run_equals_the_uninterrupted_one(shards, tmp_path, stop, done):
    options = {"ema": 0.9, "lookahead": True, "checkpoint_every_steps": 1, "micro_batch": 3}
    whole = make_trainer(shards, tmp_path / "whole", **options)
    whole.run()

    with pytest.raises(KeyboardInterrupt):
        make_trainer(shards, tmp_path / "cut", callbacks=[StopAfter(stop)], **options).run()
    told = Recorder()
    rest = make_trainer(shards, tmp_path / "cut", callbacks=[told], **options)
    state = rest.run()

    assert_equal(weights(whole), weights(rest))
    assert state == whole.state
    assert [report.step for report in told.steps] == list(range(done + 1, 7))


def test_nothing_to_resume_starts_anew(shards, tmp_path):
    trainer = make_trainer(shards, tmp_path, epochs=1)
    assert trainer.checkpointer.restore(trainer.network, trainer.optimizer) is None


def test_stochastic_depth_and_saving_in_mid_epoch_do_not_shift_random_numbers(shards, tmp_path):
    first = make_trainer(shards, tmp_path / "a", epochs=1, checkpoint_every_steps=1)
    second = make_trainer(shards, None, epochs=1)
    first.run()
    second.run()
    assert_equal(weights(first), weights(second))

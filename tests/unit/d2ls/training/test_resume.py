"""A run that is stopped anywhere and resumed equals an uninterrupted one, to the last bit."""

import pytest
import torch

from tests.tiny_trainer import Recorder, StopAfter, assert_equal, make_trainer, tiny_shards, weights


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return tiny_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("stop", "done", "total"), [(3, 2, 6), (4, 3, 5), (6, 5, 6)])
def test_a_resumed_run_equals_the_uninterrupted_one(shards, tmp_path, stop, done, total):
    options = {"ema": 0.9, "lookahead": True, "checkpoint_every_steps": 1, "micro_batch_size": 3}
    options["total_steps"] = total
    whole = make_trainer(shards, tmp_path / "whole", **options)
    whole.run()

    with pytest.raises(KeyboardInterrupt):
        make_trainer(shards, tmp_path / "cut", callbacks=[StopAfter(stop)], **options).run()
    recorder = Recorder()
    rest = make_trainer(shards, tmp_path / "cut", callbacks=[recorder], **options)
    state = rest.run()

    assert_equal(weights(whole), weights(rest))
    assert state == whole.state
    assert [report.step for report in recorder.steps] == list(range(done + 1, total + 1))


def test_nothing_to_resume_starts_anew(shards, tmp_path):
    trainer = make_trainer(shards, tmp_path, epochs=1)
    assert trainer.checkpointer.restore(trainer.network, trainer.optimizer) is None


def test_stochastic_depth_and_saving_in_mid_epoch_do_not_shift_random_numbers(shards, tmp_path):
    options = {"epochs": 1, "drop_path": 0.5}
    whole = make_trainer(shards, **options)
    whole.run()
    undropped = make_trainer(shards, epochs=1)
    undropped.run()
    first = next(iter(weights(whole)))
    assert not torch.equal(weights(whole)[first], weights(undropped)[first]), "nothing was dropped"

    saving = make_trainer(shards, tmp_path / "saving", checkpoint_every_steps=1, **options)
    saving.run()
    assert_equal(weights(whole), weights(saving))

    options["checkpoint_every_steps"] = 1
    cut = make_trainer(shards, tmp_path / "cut", callbacks=[StopAfter(2)], **options)
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    torch.manual_seed(99)
    rest = make_trainer(shards, tmp_path / "cut", **options)
    rest.run()
    assert_equal(weights(whole), weights(rest))

"""Early stopping: at the same epoch whatever interrupted the run, with evaluation and checkpoint."""

import math
from dataclasses import dataclass, replace

import pytest

from d2ls.training.early_stopping import evaluations_since_best
from tests.tiny_trainer import Recorder, StopAfter, assert_equal, make_trainer, tiny_shards, weights

SCORES = [0.1, 0.3, 0.2, 0.3, 0.25, 0.9]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return tiny_shards(tmp_path_factory.mktemp("shards"), train=(4,))


@dataclass
class Scripted:
    """An evaluator whose scores are given, by epoch."""

    trainer: object
    evaluator: object
    scores: tuple = tuple(SCORES)

    def __getattr__(self, name):
        return getattr(self.evaluator, name)

    def __call__(self, network):
        confusion, scores = self.evaluator(network)
        return confusion, replace(scores, miou=self.scores[self.trainer.epoch - 1])


def scripted(shards, folder=None, **options):
    trainer = make_trainer(shards, folder, epochs=len(SCORES), **options)
    trainer.evaluator = Scripted(trainer, trainer.evaluator)
    return trainer


@pytest.mark.parametrize(
    ("scores", "min_delta", "expected"),
    [
        ([], 0.0, 0),
        ([0.5], 0.0, 0),
        ([0.5, 0.5], 0.0, 1),
        ([0.1, 0.3, 0.2, 0.3, 0.25], 0.0, 3),
        ([0.1, 0.3, 0.2, 0.31], 0.0, 0),
        ([0.5, 0.625, 0.6875, 0.75], 0.125, 1),  # small steps add up until they exceed it
        ([0.5, 0.625, 0.6875, 0.875], 0.125, 0),
    ],
)
def test_an_improvement_exceeds_the_last_one(scores, min_delta, expected):
    assert evaluations_since_best(scores, min_delta) == expected


def test_a_training_ends_when_its_score_has_not_risen(shards, tmp_path):
    recorder = Recorder()
    state = scripted(shards, tmp_path, patience=3, checkpoint_every_epochs=9, callbacks=[recorder]).run()
    assert [report.epoch for report in recorder.evaluations] == [1, 2, 3, 4, 5]
    assert [report.last for report in recorder.evaluations] == [False] * 4 + [True]
    assert state.ended_early == (
        "val mIoU has not risen in 3 evaluation(s) (train.patience); the best is 0.3000, of epoch 2"
    )
    assert recorder.ended == [state.ended_early]
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000002", "step-00000005"]
    assert recorder.steps[-1].total_steps == 6, "the learning rate follows the full length"


@pytest.mark.parametrize("stop", [4, 5])
def test_a_resumed_run_ends_at_the_same_epoch(shards, tmp_path, stop):
    whole = scripted(shards, patience=3)
    whole.run()
    with pytest.raises(KeyboardInterrupt):
        scripted(shards, tmp_path, patience=3, callbacks=[StopAfter(stop)]).run()
    for _ in range(2):  # the second time its last checkpoint is that of the end
        rest = scripted(shards, tmp_path, patience=3)
        assert rest.run() == whole.state
        assert_equal(weights(whole), weights(rest))


def test_a_resumed_run_goes_on_with_more_patience(shards, tmp_path):
    whole = scripted(shards, patience=4)
    whole.run()
    assert scripted(shards, tmp_path, patience=3).run().step == 5
    rest = scripted(shards, tmp_path, patience=4)
    assert rest.run() == whole.state
    assert (rest.state.step, rest.state.ended_early) == (6, "")
    assert_equal(weights(whole), weights(rest))


def test_an_evaluation_without_a_score_is_not_the_best_for_ever(shards):
    """No score is a number where no scored class is in the labels or the predictions."""
    trainer = scripted(shards)
    trainer.evaluator.scores = (math.nan, math.nan, 0.2, math.nan, 0.3, 0.1)
    state = trainer.run()
    assert (state.best_score, state.best_epoch) == (0.3, 5)


def test_a_run_that_improves_or_has_its_full_length_does_not_end_early(shards):
    recorder = Recorder()
    state = scripted(shards, patience=4, callbacks=[recorder]).run()
    assert (state.step, state.ended_early, recorder.ended) == (6, "", [""])
    assert [report.last for report in recorder.evaluations] == [False] * 5 + [True]

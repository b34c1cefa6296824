"""A time budget: the training ends with the step in which it is used up, sessions before a resume counted in."""

from types import SimpleNamespace

import pytest

from tests.fake_device import FakeDevice
from tests.tiny_trainer import Recorder, StopAfter, assert_equal, make_trainer, tiny_shards, weights


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return tiny_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def clock(monkeypatch):
    """The trainer's clock, which only ticks unless somebody moves it."""
    hands = SimpleNamespace(now=1000.0)

    def perf_counter():
        hands.now += 1e-6
        return hands.now

    monkeypatch.setattr("d2ls.training.trainer.time", SimpleNamespace(perf_counter=perf_counter))
    return hands


class Slow(Recorder):
    """Every step takes ten seconds, every evaluation as long as is said."""

    def __init__(self, clock, evaluation=0.0):
        super().__init__()
        self.clock, self.evaluation = clock, evaluation

    def on_step(self, report):
        super().on_step(report)
        self.clock.now += 10

    def on_evaluation(self, report, network):
        super().on_evaluation(report, network)
        self.clock.now += self.evaluation


@pytest.mark.parametrize(("device", "steps"), [(None, 4), (FakeDevice(), 5)], ids=["cpu", "runs ahead"])
def test_the_budget_ends_the_training_in_mid_epoch(shards, tmp_path, clock, device, steps):
    """Step 4 begins at 30 s. A device that runs ahead is in the next step when the host hears of it."""
    slow = Slow(clock)
    trainer = make_trainer(
        shards, tmp_path, epochs=4, time_budget=24.0, evaluate_every=9, callbacks=[slow], device=device
    )
    state = trainer.run()
    assert state.step == steps
    assert state.seconds == pytest.approx(10 * steps, abs=0.1)
    assert state.ended_early == (
        f"the time budget of 0.4 min (train.time_budget) is used up after step {steps} of 12"
    )
    assert slow.ended == [state.ended_early]
    assert [(report.step, report.last) for report in slow.evaluations] == [(steps, True)]
    assert slow.checkpoints[-1] == (f"step-{steps:08d}", True)
    assert [row["step"] for row in state.history][-1] == steps


def test_time_before_a_resume_counts(shards, tmp_path, clock):
    options = {"epochs": 4, "time_budget": 65.0, "checkpoint_every_steps": 1}
    with pytest.raises(KeyboardInterrupt):
        make_trainer(shards, tmp_path, callbacks=[Slow(clock), StopAfter(5)], **options).run()
    clock.now += 10_000  # while nothing ran
    slow = Slow(clock)
    state = make_trainer(shards, tmp_path, callbacks=[slow], **options).run()
    assert [report.step for report in slow.steps] == [5, 6, 7, 8], "step 8 begins at 70 s"
    assert state.seconds == pytest.approx(80, abs=0.1)
    again = make_trainer(shards, tmp_path, **options).run()
    assert (again.step, again.ended_early) == (8, state.ended_early)


@pytest.mark.parametrize("longer", [1000.0, None])
def test_a_larger_budget_goes_on_where_the_smaller_one_ended(shards, tmp_path, clock, longer):
    """The end is in mid-epoch: the completed epoch has one row, with the loss of all its steps."""
    options = {"epochs": 3, "evaluate_every": 3}
    whole = make_trainer(shards, **options)
    whole.run()
    ended = make_trainer(shards, tmp_path, time_budget=24.0, callbacks=[Slow(clock)], **options).run()
    assert (ended.step, [row["epoch"] for row in ended.history]) == (4, [1, 2])
    slow = Slow(clock)
    rest = make_trainer(shards, tmp_path, time_budget=longer, callbacks=[slow], **options)
    state = rest.run()
    assert [report.step for report in slow.steps] == [5, 6, 7, 8, 9]
    assert slow.steps[0].seconds_spent == pytest.approx(40, abs=0.1)
    assert slow.steps[0].time_budget == longer
    assert (state.ended_early, slow.ended) == ("", [""])
    assert state.history == whole.state.history
    assert_equal(weights(whole), weights(rest))


def test_a_budget_that_an_evaluation_uses_up_begins_no_epoch(shards, clock):
    slow = Slow(clock, evaluation=100.0)
    state = make_trainer(shards, epochs=4, time_budget=100.0, callbacks=[slow]).run()
    assert state.step == 4, "the evaluation of epoch 1 ends after the decision of its own epoch"
    slow = make_trainer(shards, epochs=4, time_budget=100.0)
    evaluate = slow.evaluator

    class Evaluating:
        def __getattr__(self, name):
            return getattr(evaluate, name)

        def __call__(self, network):
            clock.now += 100.0
            return evaluate(network)

    slow.evaluator = Evaluating()
    state = slow.run()
    assert (state.step, len(state.history)) == (3, 1)
    assert "is used up after step 3 of 12" in state.ended_early


def test_a_budget_that_is_not_used_up_changes_nothing(shards):
    assert make_trainer(shards, epochs=1, time_budget=3600.0).run().ended_early == ""

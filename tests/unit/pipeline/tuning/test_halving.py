"""Which trials successive halving stops."""

from dataclasses import replace

from pipeline.tuning.halving import Halving
from pipeline.tuning.report import Trial

RULE = Halving(grace_epochs=1, reduction_factor=2, epochs=8)


def trial(key, *scores):
    curve = {str(epoch): score for epoch, score in enumerate(scores, start=1)}
    return Trial(key, key, {}, epoch=len(scores), curve=curve)


def test_rungs_grow_by_the_factor_and_end_before_the_last_epoch():
    assert RULE.rungs(8) == [1, 2, 4]
    assert RULE.rungs(3) == [1, 2]
    assert Halving(2, 3, 6).rungs(6) == [2]
    assert Halving(1, 3, 1).rungs(1) == []
    assert Halving(1, 3, None).rungs(9) == [1, 3, 9], "the length is in steps"


def test_the_first_at_a_rung_goes_on_and_a_worse_one_stops():
    assert not RULE.stops(trial("a", 0.1), [])
    assert RULE.stops(trial("b", 0.1), [trial("a", 0.2)])
    assert not RULE.stops(trial("b", 0.2), [trial("a", 0.2)])
    assert not RULE.stops(trial("b", 0.3), [trial("a", 0.2, 0.9, 0.9)])


def test_a_trial_is_compared_at_rungs_alone_and_once():
    better = [trial("a", 0.5, 0.6, 0.7, 0.8)]
    assert not RULE.stops(trial("b", 0.6, 0.7, 0.1), better), "epoch 3 is no rung"
    assert RULE.stops(trial("b", 0.6, 0.7, 0.8, 0.1), better)
    assert not RULE.stops(trial("b", 0.1), [trial("c")]), "nobody got there before"


def test_scores_count_from_the_first_evaluation_after_a_rung():
    every_third = Trial("a", "a", {}, epoch=3, curve={"3": 0.5})
    assert RULE.stops(every_third, [trial("b", 0.1, 0.9)])
    assert not RULE.stops(every_third, [trial("b", 0.9, 0.1)])


def test_with_a_factor_of_three_the_best_third_goes_on():
    rule = Halving(1, 3, 9)
    others = [trial(str(score), score) for score in (0.1, 0.2, 0.3, 0.4)]
    assert rule.stops(trial("x", 0.25), others)
    assert not rule.stops(trial("x", 0.35), others)


def test_a_verdict_that_a_kill_cut_off_is_made_up_for():
    better, worse = trial("a", 0.5, 0.6, 0.7, 0.8), replace(trial("b", 0.1), status="started")
    ended = [replace(better, status="finished"), replace(trial("c", 0.2), status="pruned")]
    assert RULE.overdue([*ended, worse]) == [worse]
    assert RULE.overdue([*ended, replace(trial("b", 0.9), status="started")]) == []
    assert RULE.overdue([*ended, replace(trial("b", 0.6, 0.7, 0.1), status="started")]) == [], "no rung"

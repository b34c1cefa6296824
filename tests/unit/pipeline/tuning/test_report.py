"""The report of a sweep: configurations over seeds, the winner, and whether its lead exceeds the noise."""

import pytest

from pipeline.tuning.report import SweepSummary, Trial
from pipeline.tuning.space import trial_key


def trial(score, status="finished", **values):
    values = {"model.stages": 1, **values}
    return Trial(trial_key(values), f"run-{trial_key(values)}", values, status, score, epoch=3, seconds=90.0)


def cells(rows):
    return [(row[1], row[2], row[3], row[4]) for row in rows]


def test_one_seed_each_is_ranked_with_a_warning_about_noise():
    summary = SweepSummary(
        "s", [trial(0.5), trial(0.6, **{"model.stages": 2}), trial(None, "failed", x=1)], "3 epochs"
    )
    assert summary.best.values == {"model.stages": 2}
    assert "leads by 0.1000" in summary.verdict()
    assert "over 3 epochs. The order may be noise" in summary.verdict()
    assert not summary.has_seeds
    assert [row[2] for row in summary.rows()] == ["0.6000", "0.5000", "-"]


def test_seeds_of_a_configuration_are_averaged_and_never_chosen_among():
    lucky = [trial(0.70, seed=0), trial(0.50, seed=1)]
    steady = [trial(score, seed=seed, **{"model.stages": 2}) for seed, score in enumerate((0.62, 0.64))]
    summary = SweepSummary("s", [*lucky, *steady], "3 epochs")
    assert summary.best.values == {"model.stages": 2}
    assert cells(summary.summary_rows()) == [
        ("stages=2", "0.6300", "0.0141", "2"),
        ("stages=1", "0.6000", "0.1414", "2"),
    ]
    # 2 * sqrt(0.0141^2 / 2 + 0.1414^2 / 2)
    assert "lead of 0.0300 mIoU is within the noise of 0.2010" in summary.verdict()
    text = summary.to_markdown()
    assert "**stages=2**, val/miou 0.6300 ± 0.0141" in text
    assert "| 1 | stages=2 | 0.6300 | 0.0141 | 2 | 1.5 |" in text


@pytest.mark.parametrize(("second", "word"), [(0.58, "is within"), (0.40, "exceeds")])
def test_repeats_measure_the_noise_and_do_not_change_the_winner(second, word):
    searched = [trial(0.60), trial(second, **{"model.stages": 2})]
    repeats = [trial(0.56, seed=1), trial(0.52, seed=2)]
    summary = SweepSummary("s", searched, "3 epochs", repeats)
    assert summary.best.values == {"model.stages": 1}
    assert summary.repeated.mean == pytest.approx(0.56)
    assert summary.repeated.deviation == pytest.approx(0.04)
    assert word in summary.verdict()
    assert "0.5600 ± 0.0400" in summary.verdict()
    assert cells(summary.summary_rows())[0] == ("stages=1", "0.5600", "0.0400", "3")
    assert len(summary.rows()) == 4


def test_a_pruned_configuration_wins_only_where_none_is_complete():
    pruned, finished = trial(0.9, "pruned"), trial(0.5, **{"model.stages": 2})
    assert SweepSummary("s", [pruned, finished], "3 epochs").best.values == {"model.stages": 2}
    assert SweepSummary("s", [pruned], "3 epochs").best.values == {"model.stages": 1}
    assert SweepSummary("s", [trial(None, "failed")], "3 epochs").best is None

"""The specs of the samples of a rank."""

import pytest

from d2ls.data.sampler import epoch_plan, training_specs


def partners(probability, samples=400):
    """How many partners each sample of an epoch has; the rows are their own numbers."""
    plan = epoch_plan([samples], global_batch_size=4, seed=1, epoch=0, window=16)
    specs = training_specs(plan, range(samples), range(4), mosaic=probability)
    return [len(sample.partners) for spec in specs for sample in spec.samples]


def test_a_mosaic_has_three_partners_and_comes_as_often_as_asked_for():
    assert partners(0.0) == [0] * 400
    assert partners(1.0) == [3] * 400
    result = partners(0.2)
    assert set(result) == {0, 3}
    assert result.count(3) / 400 == pytest.approx(0.2, abs=0.05)


def test_partners_come_from_the_shuffle_window_of_the_lane():
    plan = epoch_plan([400], global_batch_size=4, seed=1, epoch=0, window=16)
    schedule = plan.schedule(range(4))
    position = {row: place for place, row in enumerate(plan.sequence.rows(range(400)).tolist())}
    for step, spec in enumerate(training_specs(plan, range(400), range(4), mosaic=1.0)):
        for lane, sample in enumerate(spec.samples):
            low, high = schedule.low[step, lane], schedule.high[step, lane]
            assert all(low <= position[row] < high for row in sample.partners)

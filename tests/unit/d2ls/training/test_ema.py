import pytest
import torch

from d2ls.training.ema import ExponentialMovingAverage


def test_average_follows_and_can_be_put_in():
    network = torch.nn.BatchNorm1d(2)
    averaged = ExponentialMovingAverage(network, decay=0.5)
    expected, made = 1.0, torch.zeros(())
    for step in range(1, 20):
        with torch.no_grad():
            network.weight.fill_(float(step))
            network.num_batches_tracked.fill_(step)
        averaged.update(network, made)
        keep = min(0.5, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * step
    assert averaged.weights["weight"].tolist() == pytest.approx([expected] * 2)
    assert averaged.weights["num_batches_tracked"] == 19
    with averaged.applied(network):
        assert network.weight.tolist() == pytest.approx([expected] * 2)
    assert network.weight.tolist() == [19.0, 19.0]


def test_a_step_that_was_not_made_does_not_count():
    network = torch.nn.Linear(1, 1)
    averaged, other = (
        ExponentialMovingAverage(network, decay=0.5),
        ExponentialMovingAverage(network, decay=0.5),
    )
    with torch.no_grad():
        network.weight.fill_(3.0)
    for item in (averaged, other):
        item.update(network, torch.zeros(()))
    averaged.update(network, torch.ones(()))
    averaged.uncount_update()
    assert averaged.updates == other.updates
    assert torch.equal(averaged.weights["weight"], other.weights["weight"])

"""The process of a trial, without Tune: what it reports of a training, and how it ends."""

from types import SimpleNamespace

import pytest

from pipeline.tuning.report import METRIC
from pipeline.tuning.trial_process import TrialContext, TrialProcess
from tests.tiny_sweeps import recipe_of

LENGTHS = {"epochs": {"train__epochs": 4}, "steps": {"train__epochs": None, "train__steps": 11}}


def trains(epochs, steps_per_epoch=3):
    """A training that ends after some epochs, whatever the recipe's length is."""

    def train(recipe, name, run_id, context):
        most = recipe.train.steps or recipe.train.epochs * steps_per_epoch
        rows = [
            {"epoch": float(epoch), "step": float(min(epoch * steps_per_epoch, most)), METRIC: epoch / 10}
            for epoch in range(1, epochs + 1)
        ]
        yield from rows
        return SimpleNamespace(history=rows)

    return train


def reports(folder, epochs, **length):
    context = TrialContext(recipe_of(folder, **length).to_dict(), "", trains(epochs))
    process = TrialProcess.__new__(TrialProcess)  # Tune's own constructor is about its result files
    process.setup({"values": {}, "name": "t", "run_id": None}, context)
    result = [process.step()]
    while "status" not in result[-1]:
        result.append(process.step())
    return result


@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS)
def test_the_last_evaluation_of_a_full_length_comes_with_the_end(tmp_path, length):
    result = reports(tmp_path, 4, **length)
    assert [report["epoch"] for report in result] == [1, 2, 3, 4]
    assert [report.get("status") for report in result] == [None, None, None, "finished"]


@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS)
def test_a_training_that_ends_early_finishes_its_trial(tmp_path, length):
    *others, last = reports(tmp_path, 2, **length)
    assert [report["epoch"] for report in others] == [1, 2]
    assert last["status"] == "finished"
    assert last["done"]
    assert last["curve"] == {"1": 0.1, "2": 0.2}

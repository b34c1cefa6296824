"""Trainings one after the other in one process do not influence each other."""

import logging
import os
import random
import threading

import numpy as np
import pytest
import torch

from pipeline.training.process_state import ProcessState, unchanged_after
from pipeline.training.run import TrainRequest, train_epochs
from tests.tiny_recipes import assert_undisturbed, tiny_recipe, undisturbed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("one-after-the-other")


def alone(folder, **changes):
    return tiny_recipe(folder, cluster__workers=1, train__epochs=2, **changes)


def in_turn(recipe, name, stop_after=None):
    """Trains as a trial does in its process; returns the result, None if it is closed before the end."""
    training = unchanged_after(train_epochs(TrainRequest(recipe, track=False, in_process=True), name=name))
    try:
        while True:
            if next(training)["epoch"] == stop_after:
                training.close()
                return None
    except StopIteration as end:
        return end.value


def test_a_training_after_others_equals_the_same_training_alone(folder):
    recipe = alone(folder)
    threads, before = set(threading.enumerate()), ProcessState.current()
    disturbing = {"seed": 7, "train__precision": "tf32", "cluster__cpus_per_worker": 2, "model__stages": 2}
    in_turn(alone(folder, **disturbing), "pruned", stop_after=1)
    assert set(threading.enumerate()) <= threads, "threads are left"
    after = ProcessState.current()
    for name in ("environment", "folder", "threads", "flags", "logs"):
        assert getattr(after, name) == getattr(before, name), name
    assert_undisturbed(in_turn(recipe, "after"), undisturbed(recipe, folder / "expected"))


def test_everything_a_training_changes_is_put_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def training():
        os.environ["LEFT_BEHIND"] = "1"
        os.chdir("/")
        torch.set_num_threads(3)
        torch.backends.cuda.matmul.allow_tf32 = not torch.backends.cuda.matmul.allow_tf32
        torch.set_default_dtype(torch.float64)
        logging.getLogger("d2ls").addHandler(logging.NullHandler())
        yield random.random(), np.random.random(), float(torch.rand(()))  # noqa: NPY002
        raise RuntimeError("in its second epoch")

    before = ProcessState.current()
    numbers = [next(unchanged_after(training())) for _ in range(2)]  # closed after their first epoch
    assert numbers[0] == numbers[1]
    with pytest.raises(RuntimeError, match="second epoch"):
        list(unchanged_after(training()))
    after = ProcessState.current()
    for name in ("environment", "folder", "threads", "flags", "logs"):
        assert getattr(after, name) == getattr(before, name), name

"""`pipeline.train` on a real local Ray: equal to plain processes, resumable, and every run ends in a right state."""

import os
import signal

import pytest

from d2ls.bundle import load_bundle
from d2ls.errors import ConfigError, NonFiniteLossError, ResourceError
from d2ls.storage import local_path
from pipeline import cluster, train
from pipeline.tracking import Store
from pipeline.training.run_folder import RunFolder
from tests.train_world import digest, plain, tiny_recipe, train_workers, undisturbed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def ray(folder):
    with cluster.connect(tiny_recipe(folder).cluster) as connected:
        yield connected


@pytest.fixture(scope="module")
def expected(folder):
    return undisturbed(tiny_recipe(folder), folder / "expected")


def state_of(recipe, run_id):
    return Store.open(recipe.tracking).client.get_run(run_id).info.status


@pytest.mark.timeout(300)
def test_a_worker_killed_in_mid_run_does_not_change_the_result(ray, folder, expected):
    recipe = tiny_recipe(folder)
    told = []

    def kill_one_after_the_first_epoch(metrics):
        told.append(metrics["epoch"])
        if metrics["epoch"] == 1:
            os.kill(train_workers()[-1].pid, signal.SIGKILL)

    result = train.run(recipe, name="killed", on_epoch=kill_one_after_the_first_epoch, quiet=True)

    weights, history = expected
    assert digest(result.last_checkpoint) == weights
    assert [plain(row) for row in result.history] == history
    assert told == [1, 2, 3]
    assert result.best_scores["select/miou"] == max(row["select/miou"] for row in history)
    network, info = load_bundle(local_path(result.best_checkpoint))
    assert info.extra["run"] == "killed"
    assert network.config["stages"] == 1
    assert state_of(recipe, result.run_id) == "FINISHED"
    assert RunFolder.of(recipe.storage, "killed").facts()["state"] == "finished"


def test_a_finished_name_is_refused_or_returned(ray, folder, expected):
    recipe = tiny_recipe(folder)
    with pytest.raises(ConfigError, match="killed is there already"):
        train.run(recipe, name="killed", quiet=True)
    with pytest.raises(ConfigError, match="killed is finished"):
        train.run(recipe, name="killed", resume=True, quiet=True)
    assert train.run(recipe, name="killed", resume="auto", quiet=True).history[-1]["epoch"] == 3


@pytest.mark.timeout(300)
def test_an_error_of_ours_ends_all_workers_at_once(ray, folder):
    recipe = tiny_recipe(folder, train__optimizer__lr=1.0, train__clip_norm=None, train__epochs=40)
    recipe = recipe.with_values({"loss.contrastive": "infonce", "loss.contrastive_weight": 1e38})
    with pytest.raises(NonFiniteLossError, match=r"step \d+: loss or gradient is not finite"):
        train.run(recipe, name="diverged", quiet=True)
    facts = RunFolder.of(recipe.storage, "diverged").facts()
    assert facts["state"] == "failed"
    assert state_of(recipe, facts["run_id"]) == "FAILED"


def test_an_impossible_plan_is_refused_with_the_arithmetic(ray, folder):
    recipe = tiny_recipe(folder, cluster__workers=4, cluster__cpus_per_worker=50)
    with pytest.raises(ResourceError, match=r"workers=4 x 50 CPU = 200 CPU.* has \d+"):
        train.run(recipe, name="greedy", quiet=True)
    assert not RunFolder.of(recipe.storage, "greedy").exists()

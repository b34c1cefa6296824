"""`pipeline.train` on a real local Ray: equal to plain processes, resumable, and every run ends in the right state."""

import gzip
import json
import os
import signal

import pytest
import ray

from d2ls.errors import ConfigError, NonFiniteLossError, ResourceError
from d2ls.models.saving import load_bundle
from d2ls.storage import local_path
from pipeline.cluster import connect
from pipeline.config.train import ClusterConfig
from pipeline.tracking import Store
from pipeline.training.run import TrainRequest, train
from pipeline.training.run_folder import RunFolder
from tests.tiny_recipes import assert_undisturbed, tiny_recipe, train_workers, undisturbed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def expected(folder):
    return undisturbed(tiny_recipe(folder), folder / "expected")


def state_of(recipe, run_id):
    return Store.open(recipe.tracking).client.get_run(run_id).info.status


@pytest.fixture(scope="module")
def finished(session_ray, folder):
    """Trains without a disturbance; returns the result and the output."""
    epochs = []
    request = TrainRequest(tiny_recipe(folder), name="finished")
    result = train(request, on_epoch=lambda row: epochs.append(row["epoch"]), quiet=True)
    return result, epochs


def test_a_run_on_ray_equals_plain_processes(ray_cluster, folder, expected, finished):
    recipe, (result, epochs) = tiny_recipe(folder), finished
    assert_undisturbed(result, expected)
    assert epochs == [1, 2, 3]
    assert result.best_scores["val/miou"] == max(row["val/miou"] for row in expected[1])
    network, info = load_bundle(local_path(result.best_checkpoint))
    assert info.extra["run"] == "finished"
    assert network.config["stages"] == 1
    assert state_of(recipe, result.run_id) == "FINISHED"
    assert RunFolder.of(recipe.output_dir, "finished").metadata()["state"] == "finished"


@pytest.mark.slow
@pytest.mark.survives("a worker is killed (SIGKILL)")
def test_a_worker_killed_in_mid_run_does_not_change_the_result(
    ray_cluster, folder, expected, record_property
):
    recipe = tiny_recipe(folder)
    epochs = []

    def kill_one_after_the_first_epoch(metrics):
        epochs.append(metrics["epoch"])
        if metrics["epoch"] == 1:
            os.kill(train_workers()[-1].pid, signal.SIGKILL)

    request = TrainRequest(recipe, name="killed", profile=True)
    result = train(request, on_epoch=kill_one_after_the_first_epoch, quiet=True)

    record_property("difference", assert_undisturbed(result, expected))
    record_property("happened", "Ray started both workers again, from the newest complete checkpoint")
    assert epochs == [1, 2, 3]
    assert state_of(recipe, result.run_id) == "FINISHED"
    run = RunFolder.of(recipe.output_dir, "killed")
    assert run.metadata()["state"] == "finished"
    trace = json.loads(gzip.decompress(local_path(run.profile).read_bytes()))["traceEvents"]
    assert {"Optimizer.step#GuardedAdamW.step", "aten::convolution"} <= {event.get("name") for event in trace}


@pytest.mark.survives("the name of a finished run, or of a foreign folder, is used again")
def test_a_name_in_use_is_refused(ray_cluster, folder, finished, record_property):
    recipe = tiny_recipe(folder)
    with pytest.raises(ConfigError, match="finished exists already"):
        train(TrainRequest(recipe, name="finished"), quiet=True)
    with pytest.raises(ConfigError, match="finished is finished"):
        train(TrainRequest(recipe, name="finished", resume=True), quiet=True)
    assert train(TrainRequest(recipe, name="finished", resume="auto"), quiet=True).history[-1]["epoch"] == 3
    foreign = local_path(recipe.output_dir) / "photos"
    foreign.mkdir()
    (foreign / "cat.jpg").write_bytes(b"a cat")
    with pytest.raises(ConfigError, match="photos exists already"):
        train(TrainRequest(recipe, name="photos"), quiet=True)
    assert [file.name for file in foreign.iterdir()] == ["cat.jpg"]
    record_property("happened", "refused before anything starts, naming `--resume` and `--name`")


@pytest.mark.timeout(300)
@pytest.mark.survives("a loss is not finite")
def test_an_error_of_ours_ends_all_workers_at_once(ray_cluster, folder, record_property):
    recipe = tiny_recipe(folder, train__optimizer__lr=1.0, train__clip_norm=None, train__epochs=40)
    recipe = recipe.with_values({"loss.contrastive": "infonce", "loss.contrastive_weight": 1e38})
    with pytest.raises(NonFiniteLossError, match=r"step \d+: loss or gradient is not finite"):
        train(TrainRequest(recipe, name="diverged"), quiet=True)
    metadata = RunFolder.of(recipe.output_dir, "diverged").metadata()
    assert metadata["state"] == "failed"
    assert state_of(recipe, metadata["run_id"]) == "FAILED"
    record_property(
        "happened", "all workers stopped before the step; the error names step, terms and samples"
    )


def test_a_process_that_is_connected_elsewhere_is_refused(ray_cluster, folder):
    address = ray.get_runtime_context().gcs_address
    with connect(ClusterConfig(address=address.replace("127.0.0.1", "localhost"))) as cluster:
        assert not cluster.started_here
    with pytest.raises(
        ResourceError, match=rf"connected to the Ray cluster at {address}, but .* is 127.0.0.1:1\."
    ):
        train(TrainRequest(tiny_recipe(folder, cluster__address="127.0.0.1:1"), name="elsewhere"), quiet=True)


def test_an_impossible_plan_is_refused_with_the_arithmetic(ray_cluster, folder):
    recipe = tiny_recipe(folder, cluster__workers=4, cluster__cpus_per_worker=50)
    with pytest.raises(ResourceError, match=r"workers=4 x 50 CPU = 200 CPU.* has \d+"):
        train(TrainRequest(recipe, name="greedy"), quiet=True)
    assert not RunFolder.of(recipe.output_dir, "greedy").exists()

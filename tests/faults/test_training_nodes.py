"""A node is lost during a run: one of three Ray nodes on 127.0.0.1 is killed with all its processes."""

import os
import shutil
import tempfile
from pathlib import Path

import psutil
import pytest

from d2ls.errors import StorageError
from d2ls.training.checkpoint_files import complete_checkpoints
from pipeline.tracking import Store
from pipeline.training.run import TrainRequest, train
from pipeline.training.run_folder import RunFolder
from tests.tiny_recipes import assert_undisturbed, tiny_recipe, undisturbed, weights_of

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
LOOPBACK = "127.0.0.1"


class Nodes:
    """A head without CPUs and some nodes with one CPU each."""

    def __init__(self, count):
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # read when ray is imported
        from ray.cluster_utils import Cluster

        common = {"node_ip_address": LOOPBACK, "include_dashboard": False, "object_store_memory": 100 * 2**20}
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **common})
        self._nodes = [self._cluster.add_node(num_cpus=1, **common) for _ in range(count)]
        self._cluster.wait_for_nodes()
        self.address = self._cluster.address

    def workers(self, node):
        """Processes of Ray Train workers on a node."""
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        return [
            item for item in raylet.children(recursive=True) if "RayTrainWorker" in " ".join(item.cmdline())
        ]

    def busy(self):
        """Nodes with a training worker."""
        return [node for node in self._nodes if self.workers(node)]

    def keep(self, count):
        """Kills nodes until a number of them is left."""
        while len(self._nodes) > count:
            self.lose(self._nodes[-1])

    def lose(self, node):
        """Kills a node and everything that runs on it."""
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        for process in [raylet, *raylet.children(recursive=True)]:
            process.kill()
        self._nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def close(self):
        self._cluster.shutdown()
        shutil.rmtree(
            Path(tempfile.gettempdir(), "ray"), ignore_errors=True
        )  # this Cluster always writes there


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("nodes")


@pytest.fixture(scope="module")
def nodes():
    made = Nodes(3)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def shared_paths(monkeypatch):
    monkeypatch.setenv("D2LS_SHARED_PATHS", "1")
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "60")


def on_nodes(folder, nodes, **changes):
    values = {"cluster__address": nodes.address, "cluster__cpus_per_worker": 1, "train__epochs": 6}
    return tiny_recipe(folder, **values, **changes)


@pytest.fixture(scope="module")
def expected(folder):
    return undisturbed(tiny_recipe(folder, train__epochs=6), folder / "expected")


def lose_one_after_the_first_epoch(nodes, seen):
    """Makes a callback that kills the node of a worker, and records the number of workers of each later epoch."""

    def on_epoch(metrics):
        if metrics["epoch"] == 1:
            assert len(nodes.busy()) == 2
            nodes.lose(nodes.busy()[-1])
        else:
            seen.append(len(nodes.busy()))

    return on_epoch


@pytest.mark.survives("local paths, or an MLflow store in a file, with several nodes")
def test_local_paths_are_refused(folder, nodes, monkeypatch, record_property):
    monkeypatch.delenv("D2LS_SHARED_PATHS")
    recipe = on_nodes(folder, nodes)
    with pytest.raises(
        StorageError, match=r"output_dir: .* is a local path, the cluster has 4 nodes. Use s3://"
    ):
        train(TrainRequest(recipe, name="local"), quiet=True)
    assert not RunFolder.of(recipe.output_dir, "local").exists()
    record_property("happened", "refused before anything starts, naming the key and what to set")


@pytest.mark.survives("a node is gone; another has room")
def test_a_lost_node_is_replaced_by_another(folder, nodes, expected, record_property):
    recipe, seen = on_nodes(folder, nodes), []
    losing = lose_one_after_the_first_epoch(nodes, seen)
    result = train(TrainRequest(recipe, name="replaced"), on_epoch=losing, quiet=True)
    record_property("difference", assert_undisturbed(result, expected))
    record_property(
        "happened", "went on from the newest checkpoint, on the node that was left and another one"
    )
    assert Store.open(recipe.tracking).run(result.run_id).status == "FINISHED"


@pytest.mark.survives("a node is gone for good, `cluster.min_workers: 1 cluster.max_workers: 2`")
def test_a_range_of_workers_goes_on_with_fewer(folder, nodes, expected, record_property):
    nodes.keep(2)
    recipe, seen = (
        on_nodes(folder, nodes, cluster__workers=None, cluster__min_workers=1, cluster__max_workers=2),
        [],
    )
    losing = lose_one_after_the_first_epoch(nodes, seen)
    result = train(TrainRequest(recipe, name="fewer"), on_epoch=losing, quiet=True)
    assert seen[-1] == 1, "workers of the last epochs"
    whole = weights_of(complete_checkpoints(str(folder / "expected"))[-1].uri)
    actual = weights_of(result.last_checkpoint)
    weights = max(float((actual[name] - whole[name]).abs().max()) for name in whole)
    history = expected[1]
    assert [row["step"] for row in result.history] == [row["step"] for row in history]
    losses = max(
        abs(mine["train/loss"] / theirs["train/loss"] - 1)
        for mine, theirs in zip(result.history, history, strict=True)
    )
    assert losses < 1e-2
    assert weights < 1e-2
    record_property("happened", "went on with one worker, the same global batches and samples")
    record_property(
        "difference", f"{losses:.0e} of an epoch's loss, {weights:.0e} in a weight: sums round otherwise"
    )

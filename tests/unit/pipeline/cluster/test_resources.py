import pytest

from d2ls.errors import ResourceError, StorageError, TrackingError
from pipeline.cluster import Cluster, check_resources
from tests.tiny_recipes import tiny_recipe


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "shards").mkdir()
    return tiny_recipe(tmp_path, cluster__workers=4, cluster__cpus_per_worker=2)


def cluster(**changes):
    return Cluster(
        **{"address": "10.0.0.1:6379", "nodes": 1, "cpus": 8.0, "gpus": 0.0, "started_here": False, **changes}
    )


def test_what_fits_is_let_through(recipe):
    check_resources(recipe, cluster())
    assert cluster().capacity(recipe.cluster) == 4


@pytest.mark.parametrize(
    ("have", "message"),
    [
        ({"cpus": 4.0}, r"workers=4 x 2 CPU = 8 CPU.* has 4.*workers=2"),
        ({"gpus": 3.0}, r"workers=4 x 1 GPU = 4 GPU.* has 3.*workers=3"),
        ({"cpus": 1.0}, r"Lower cluster.cpus_per_worker, or join a larger cluster"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_arithmetic(recipe, have, message):
    with pytest.raises(ResourceError, match=message):
        check_resources(recipe, cluster(**have))


def test_a_range_needs_its_lower_end(recipe):
    check_resources(
        recipe.with_values({"cluster.workers": None, "cluster.min_workers": 1, "cluster.max_workers": 4}),
        cluster(cpus=2.0),
    )


def test_gpus_are_used_where_they_are_unless_told_otherwise(recipe):
    assert cluster(gpus=4.0).per_worker(recipe.cluster) == {"CPU": 2.0, "GPU": 1.0}
    without = recipe.with_values({"cluster.gpus_per_worker": 0.0}).cluster
    assert cluster(gpus=4.0).per_worker(without) == {"CPU": 2.0}


def test_a_local_path_on_more_than_one_node_is_refused(recipe, monkeypatch):
    monkeypatch.delenv("D2LS_SHARED_PATHS", raising=False)
    with pytest.raises(
        StorageError, match=r"output_dir: .* is a local path, the cluster has 2 nodes. Use s3://"
    ):
        check_resources(recipe, cluster(nodes=2))
    remote = recipe.with_values({"output_dir": "s3://b/runs"})
    with pytest.raises(StorageError, match=r"shards\.uri: "):
        check_resources(remote, cluster(nodes=2))
    remote = remote.with_values({"shards.uri": "s3://b/shards"})
    with pytest.raises(TrackingError, match=r"tracking\.uri: sqlite:.* is a local file.*`mlflow server`"):
        check_resources(remote, cluster(nodes=2))
    check_resources(remote.with_values({"tracking.uri": "http://mlflow:5000"}), cluster(nodes=2))
    monkeypatch.setenv("D2LS_SHARED_PATHS", "1")
    check_resources(recipe, cluster(nodes=2))

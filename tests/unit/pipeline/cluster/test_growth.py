import json

import pytest

from d2ls.errors import ConfigError
from pipeline.cluster import growth
from pipeline.config import load_recipe

FILE = {
    "max_workers": 5,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 4}},
        "cpu": {"max_workers": 10, "resources": {"CPU": 16}},
        "spot": {"max_workers": 3, "resources": {"CPU": 8, "GPU": 1}},
        "large": {"max_workers": 1, "resources": {"CPU": 32, "GPU": 4}},
    },
}


@pytest.fixture
def no_variables(monkeypatch, tmp_path):
    monkeypatch.delenv(growth.GROWS_TO, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_counts_up_to_the_workers_that_the_file_allows_gpus_first():
    assert growth.of_cluster_file(FILE) == {"CPU": 4 + 32 + 3 * 8 + 16, "GPU": 4 + 3}


def test_a_cluster_that_does_not_grow_has_what_ray_counts(no_variables):
    assert growth.grows_to({"CPU": 2.0, "node:1": 1.0}) == {"CPU": 2.0, "node:1": 1.0}


def test_the_head_of_a_cluster_knows_from_its_own_file(no_variables):
    (no_variables / "ray_bootstrap_config.yaml").write_text(json.dumps(FILE))
    assert growth.grows_to({"CPU": 4.0})["GPU"] == 7


def test_own_machines_declare_nothing_and_are_counted_by_ray(no_variables):
    file = {"head_node_type": "x", "available_node_types": {"x": {"resources": {}, "max_workers": 2}}}
    (no_variables / "ray_bootstrap_config.yaml").write_text(json.dumps(file))
    assert growth.grows_to({"CPU": 6.0, "GPU": 2.0}) == {"CPU": 6.0, "GPU": 2.0}


def test_a_variable_says_it_elsewhere(no_variables, monkeypatch):
    monkeypatch.setenv(growth.GROWS_TO, "CPU=68, GPU=8")
    assert growth.grows_to({"CPU": 100.0}) == {"CPU": 100.0, "GPU": 8.0}
    monkeypatch.setenv(growth.GROWS_TO, "8 GPUs")
    with pytest.raises(ConfigError, match="CPU=68,GPU=8"):
        growth.grows_to({})


def test_relative_locations_of_recipes_lie_below_the_clusters_storage(monkeypatch):
    monkeypatch.setenv("D2LS_STORAGE", "s3://bucket/d2ls/")
    recipe = load_recipe("demo")
    assert recipe.output_dir == "s3://bucket/d2ls/runs"
    assert recipe.shards.uri == "s3://bucket/d2ls/data/demo/shards"
    assert recipe.data.root == "data/demo/LoveDA"
    given = load_recipe("demo", ["output_dir=/mnt/runs", "shards.uri=s3://other/shards"])
    assert (given.output_dir, given.shards.uri) == ("/mnt/runs", "s3://other/shards")

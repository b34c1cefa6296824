"""The plan that a sweep prints: trials and resources, or the arithmetic if they do not fit."""

import io
import sys
import time

import pytest
from rich.console import Console

from d2ls.errors import ResourceError
from pipeline import sweep
from pipeline.cluster import Cluster
from pipeline.tuning.plan import LISTED, Plan
from tests.tiny_recipes import tiny_recipe

SPACE = {"model.stages": {"values": [0, 1]}, "model.drop_path": {"values": [0.0, 0.1]}}


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "shards").mkdir()
    return tiny_recipe(
        tmp_path,
        sweep={
            "space": SPACE,
            "trial_overrides": {"train.epochs": 1, "cluster.workers": 1},
            "max_concurrent_trials": 2,
        },
    )


def planned(recipe, cpus=2.0, gpus=0.0, **options):
    return Plan.make(recipe, Cluster("", 1, cpus, gpus, started_here=True), **options)


def shown(plan):
    console = Console(file=io.StringIO(), width=200)
    plan.show(console)
    return console.file.getvalue()


def test_the_plan_names_trials_repeats_final_training_and_each_configuration(recipe):
    text = shown(planned(recipe, seeds=3))
    assert "4 trial(s) of 1 epoch, 2 at once, 1 worker(s) each (0.5 of 2 CPUs)" in text
    assert "with 2 further seed(s); then the best one for 3 epochs" in text
    assert "stages=0 drop_path=0.0" in text
    assert "stages=1 drop_path=0.1" in text
    assert "in each of them: contrastive=infonce epochs=1 workers=1" in text


def test_a_long_list_of_configurations_is_cut(recipe):
    many = recipe.with_values({"sweep.space": {"seed": {"values": list(range(LISTED + 7))}}})
    assert "and 7 more" in shown(planned(many))


def test_a_gpu_a_worker_limits_trials_at_once(recipe):
    plan = planned(recipe.with_values({"sweep.max_concurrent_trials": None}), cpus=64.0, gpus=3.0)
    assert plan.concurrent == 3
    assert plan.resources == "0.5 of 64 CPUs, 1 of 3 GPUs"


def test_a_trial_that_does_not_fit_is_refused_with_the_arithmetic(recipe):
    with pytest.raises(ResourceError, match=r"1 worker.* x 0.5 CPUs takes 0.5 of 0.25 CPUs"):
        planned(recipe, cpus=0.25)


def test_a_plan_starts_nothing_and_says_what_only_the_cluster_knows(recipe, tmp_path, monkeypatch, capsys):
    recipe = recipe.with_values({"cluster.address": "ray://head:10001"})
    file, before = tmp_path / "recipe.yaml", sorted(tmp_path.rglob("*"))
    file.write_text(recipe.to_yaml())
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it would raise
    started = time.monotonic()
    sweep.main([str(file), "--plan"])
    assert time.monotonic() - started < 2
    assert "4 trial(s) of 1 epoch, 1 worker(s) each (as many at once as ray://head:10001 holds)" in (
        capsys.readouterr().out.replace("\n", " ").replace("  ", " ")
    )
    assert sorted(tmp_path.rglob("*")) == sorted([*before, file]), "a plan leaves nothing"

"""What a sweep says before it starts: trials, resources, disk, time; and the arithmetic where it cannot."""

import io

import pytest
from rich.console import Console

from d2ls.errors import ResourceError
from d2ls.shards import ShardSet
from pipeline.console import in_words
from pipeline.searching import estimate
from pipeline.searching.plan import LISTED, Plan
from pipeline.searching.space import configurations
from pipeline.training import pace
from pipeline.training.pace import Pace
from tests.train_world import tiny_recipe

SPACE = {"model.stages": {"values": [0, 1]}, "model.drop_path": {"values": [0.0, 0.1]}}


@pytest.fixture
def recipe(tmp_path):
    return tiny_recipe(
        tmp_path, sweep={"space": SPACE, "trial": {"train.epochs": 1, "cluster.workers": 1}, "concurrent": 2}
    )


def planned(recipe, cpus=2.0, **options):
    return Plan.make(recipe, configurations(recipe), cpus, 0.0, **options)


def shown(plan):
    console = Console(file=io.StringIO(), width=200)
    plan.show(console)
    return console.file.getvalue()


def test_the_plan_names_trials_repeats_final_training_and_each_configuration(recipe):
    text = shown(planned(recipe, repeat=3))
    assert "4 trial(s) of 1 epoch(s), 2 at once, 1 worker(s) each (0.5 of 2 CPUs)" in text
    assert "with 2 further seed(s); then the best one for 3 epoch(s)" in text
    assert "stages=0 drop_path=0.0" in text
    assert "stages=1 drop_path=0.1" in text
    assert "in each of them: contrastive=infonce epochs=1 workers=1" in text


def test_a_long_list_of_configurations_is_cut(recipe):
    many = recipe.with_values({"sweep.space": {"seed": {"values": list(range(LISTED + 7))}}})
    assert "and 7 more" in shown(planned(many))


def test_disk_counts_every_run_that_keeps_checkpoints(recipe):
    alone = planned(recipe.with_values({"sweep.final": False}))
    assert planned(recipe).disk_gb == pytest.approx(alone.disk_gb * 5 / 4)
    assert planned(recipe, repeat=3).disk_gb == pytest.approx(alone.disk_gb * 7 / 4)


def test_time_is_measured_on_the_largest_network(recipe):
    assert planned(recipe).trial.model.stages == 1
    assert planned(recipe).final.train.epochs == 3


def test_a_trial_that_does_not_fit_is_refused_with_the_arithmetic(recipe):
    with pytest.raises(ResourceError, match=r"1 worker.* x 0.5 CPUs takes 0.5 of 0.25 CPUs"):
        planned(recipe, cpus=0.25)


def test_the_pace_is_that_of_real_steps_and_nothing_is_kept(recipe, tmp_path):
    ShardSet.open(recipe.shards.uri)
    before = sorted(tmp_path.rglob("*"))
    found = pace.measure(recipe.to_dict(), recipe.shards.uri, "cpu")
    assert 0 < found.forward < found.step
    assert (found.share, found.crop) == (2, recipe.loader.augmentation.crop_size)
    assert sorted(tmp_path.rglob("*")) == before


def test_time_adds_up(recipe):
    shards = ShardSet.open(recipe.shards.uri)
    plan = planned(recipe, repeat=2)
    of_four = Pace(step=100.0, forward=20.0, share=4, crop=recipe.loader.augmentation.crop_size)
    steps = -(-shards.card.splits["train"].samples // 4)
    rows = shards.rows("val")
    samples = sum(
        h * w for h, w in zip(rows["height"].to_pylist(), rows["width"].to_pylist(), strict=True)
    ) / (of_four.crop**2)
    # Five seconds a sample forward; a trial has one worker and one epoch, the final training two and three.
    trial = steps * 100.0 + samples * 5.0
    final = 3 * (steps * 50.0 + samples * 5.0 / 2) + of_four.evaluation(shards, "test")
    assert of_four.training(plan.trial, shards) == pytest.approx(trial)
    # Two rounds of trials, one of repeats, the final training.
    total = 3 * (trial + estimate.START_SECONDS) + final + estimate.START_SECONDS
    text = estimate.describe_time(plan, of_four, of_four, shards)
    assert f"about {in_words(total)}: " in text
    assert "at most" not in text
    pruned = planned(recipe.with_values({"sweep.scheduler": "asha"}))
    assert "at most about" in estimate.describe_time(pruned, of_four, of_four, shards)


def test_a_larger_crop_costs_more_and_another_network_is_timed_too(recipe):
    shards, crop = ShardSet.open(recipe.shards.uri), recipe.loader.augmentation.crop_size
    pace_of_four = Pace(step=100.0, forward=0.0, share=4, crop=crop)
    halved = recipe.with_values(
        {"sweep.trial": {"loader.augmentation.crop_size": crop // 2, "cluster.workers": 2}}
    )
    plan = planned(halved)
    assert pace_of_four.training(plan.final, shards) == pytest.approx(
        4 * pace_of_four.training(plan.trial, shards)
    )
    assert not plan.differs_at_last
    assert planned(recipe.with_values({"sweep.trial": {"model.backbone": "test_resnet"}})).differs_at_last


class Nowhere:
    """A cluster on which nothing can be timed."""

    own = True

    def per_worker(self, config):
        raise MemoryError


def test_what_cannot_be_timed_is_said_and_stops_nothing(recipe):
    console = Console(file=io.StringIO(), width=200)
    estimate.show_time(console, planned(recipe), ShardSet.open(recipe.shards.uri), Nowhere())
    assert "time unknown: MemoryError: no message" in console.file.getvalue()

"""What a sweep refuses before it starts anything."""

import pytest

from d2ls.errors import ConfigError, WeightsError
from pipeline.tuning import run
from tests.tiny_recipes import tiny_recipe


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    def started(*_, **__):
        raise AssertionError("a Ray was started")

    monkeypatch.setattr(run.cluster, "connect", started)
    return tiny_recipe(tmp_path, cluster__workers=1)


@pytest.mark.parametrize(
    "space",
    [
        {"model.backbone": {"values": ["test_convnext", "convnxt_tiny"]}},
        {"model.stages": {"values": [1, 2]}},
    ],
)
def test_a_backbone_of_any_trial_that_timm_does_not_know(recipe, space):
    overrides = {} if "model.backbone" in space else {"model.backbone": "convnxt_tiny"}
    wrong = recipe.with_values({"sweep.space": space, "sweep.overrides": overrides})
    with pytest.raises(ConfigError, match=r"convnxt_tiny: timm knows no such backbone"):
        run.sweep(run.SweepRequest(wrong))


def test_a_backbone_that_tpe_could_choose(recipe):
    space = {"model.backbone": {"values": ["test_convnext", "convnxt_tiny"]}}
    wrong = recipe.with_values({"sweep.space": space, "sweep.search": "tpe", "sweep.num_trials": 2})
    with pytest.raises(ConfigError, match=r"convnxt_tiny: timm knows no such backbone"):
        run.sweep(run.SweepRequest(wrong))


def test_pretrained_weights_that_cannot_be_fetched(recipe, monkeypatch):
    def away(name):
        raise WeightsError(f"{name}: no route to the hub")

    monkeypatch.setattr("d2ls.models.backbone.check_hub", away)
    pretrained = recipe.with_values({"model.pretrained": True})
    with pytest.raises(WeightsError, match="no route"):
        run.sweep(run.SweepRequest(pretrained))

"""`model.init`: a training starts from a registered model, also with other classes and bands."""

import logging
from dataclasses import replace

import pytest
import torch

from d2ls.errors import WeightsError
from d2ls.labels import ClassTable
from d2ls.models.saving import load_bundle
from pipeline.training import build
from tests.tracked_runs import register_blobs

URI = "models:/d2ls-blobs@challenger"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Shards, recipe, the registered network, and where it is registered."""
    made = register_blobs(tmp_path_factory.mktemp("world"))
    network, _ = load_bundle(made.checkpoint)
    return made.shards, made.recipe.with_values({"model.init": URI}), network.state_dict(), made.store.uri


def test_a_registered_model_is_where_training_starts(world):
    shards, recipe, source, store = world
    result = build.network(recipe, shards.card, store).state_dict()
    assert set(result) == set(source)
    assert all(
        torch.equal(result[name], source[name]) for name in source if result[name].shape == source[name].shape
    )


def test_other_classes_and_bands_keep_what_fits(world, caplog):
    shards, recipe, source, store = world
    classes = ClassTable.create(["a", "b", "c", "d", "e", "f"], [[number, 0, 0] for number in range(6)])
    card = replace(
        shards.card, classes=classes, bands=("red", "green", "blue", "nir"), mean=(0.1,) * 4, std=(0.3,) * 4
    )
    with caplog.at_level(logging.INFO, "pipeline"):
        network = build.network(recipe, card, store)
    result = network.state_dict()
    (stem,) = [name for name, tensor in result.items() if tensor.dim() == 4 and tensor.shape[1] == 4]
    assert source[stem].shape[1] == 3
    assert torch.equal(result[stem][:, :3], source[stem])
    torch.testing.assert_close(result[stem][:, 3], source[stem].mean(1))
    trunk = [name for name in source if name.startswith("backbone.") and name != stem]
    assert len(trunk) > 50
    assert all(torch.equal(result[name], source[name]) for name in trunk)
    assert f"started from {URI}" in caplog.text
    assert "not taken over" in caplog.text
    output = network.eval()(torch.rand(1, 4, 64, 64))
    assert output.logits.shape[:2] == (1, 6)


def test_another_backbone_is_refused(world):
    shards, recipe, _, store = world
    other = recipe.with_values({"model.backbone": "test_resnet"})
    with pytest.raises(WeightsError, match=r"has the backbone convnext_atto, the recipe has test_resnet"):
        build.network(other, shards.card, store)


def test_a_local_folder_is_found_from_any_working_folder(world, tmp_path, monkeypatch):
    _, recipe, _, _ = world
    monkeypatch.chdir(tmp_path)
    assert recipe.with_values({"model.init": "models/first"}).anchored().model.init == str(
        tmp_path / "models/first"
    )
    assert recipe.anchored().model.init == URI

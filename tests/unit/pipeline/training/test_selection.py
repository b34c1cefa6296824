"""The split that is reported chooses nothing: with its labels permuted, a training makes the same choices."""

import json

import numpy as np
import pytest
import torch

from d2ls import storage
from d2ls.shards import ShardSet
from d2ls.training.process_group import ProcessGroup
from pipeline.training import build
from tests.shards import picture
from tests.tiny_recipes import tiny_recipe, weights_of
from tests.tiny_trainer import tiny_shards


def relabelled(number, height, width):
    """Returns the same picture with permuted class ids."""
    image, mask = picture(number, height, width)
    return image, np.where(mask == 255, 255, (mask.astype(int) + 1) % 4).astype(np.uint8)


def choices(folder, split):
    """Trains with the labels of a split permuted; returns the choices and the values that they depend on."""
    tiny_shards(folder / "shards", samples={split: relabelled} if split else None)
    recipe = tiny_recipe(folder, train__epochs=3, train__optimizer__lr=5e-3)
    shards, group = ShardSet.open(recipe.shards.uri), ProcessGroup()
    loaders = build.loaders(recipe, shards, group)
    state = build.trainer(recipe, shards, group, loaders, checkpoints=str(folder / "checkpoints")).run()
    loaders.close()
    pointer = json.loads(storage.read_bytes(folder / "checkpoints" / "best.json"))
    return (
        (state.best_epoch, state.best_score, pointer),
        state.history,
        weights_of(folder / "checkpoints" / pointer["checkpoint"]),
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return choices(tmp_path_factory.mktemp("plain"), None)


def test_labels_of_the_report_split_change_no_choice(plain, tmp_path):
    chosen, history, weights = choices(tmp_path, "test")
    assert chosen == plain[0]
    assert history == plain[1]
    assert all(torch.equal(weights[name], tensor) for name, tensor in plain[2].items())


def test_labels_of_the_selection_split_do(plain, tmp_path):
    chosen, history, _ = choices(tmp_path, "val")
    assert chosen[:2] != plain[0][:2]
    assert [row["train/loss"] for row in history] == [row["train/loss"] for row in plain[1]], (
        "it trains nothing"
    )

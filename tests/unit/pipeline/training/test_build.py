from dataclasses import replace

import pytest

from d2ls.shards import ShardSet
from d2ls.training.process_group import ProcessGroup
from pipeline.config.recipe import load_recipe, parse_recipe
from pipeline.sharding.run import shard_spec
from pipeline.training import build
from tests.shards import make_shards
from tests.tiny_recipes import tiny_recipe


@pytest.mark.parametrize(("change", "own"), [
    ({}, False),
    ({"dtype": "uint16", "max_value": 10000.0}, True),
    ({"dtype": "float32", "max_value": 1.0, "scale": ((0.0, 0.4),) * 3}, True),
])  # fmt: skip
def test_pretrained_weights_keep_their_normalisation_for_8_bit_images_only(
    tmp_path, monkeypatch, change, own
):
    card = replace(make_shards(tmp_path / "s", [1]).card, **change)
    data = {"source": "loveda", "root": "."}
    values = {"name": "t", "data": data, "shards": {"uri": "s"}, "model": {"pretrained": True}}
    given = {}
    monkeypatch.setattr(build, "build_model", lambda **options: given.update(options))
    build.network(parse_recipe(values), card)
    normalization = given["normalization"]
    assert (normalization is not None) == own
    if own:
        assert normalization["max_value"] == card.max_value
        assert normalization.get("scale") == ([list(pair) for pair in card.scale] if card.scale else None)


def test_a_length_in_steps_reaches_schedule_and_checkpoints(tmp_path):
    recipe = tiny_recipe(tmp_path, train__epochs=None, train__steps=7)
    assert build.schedule(recipe, 3).total_steps == 7
    assert build.schedule(recipe.with_values({"train.epochs": 2, "train.steps": None}), 3).total_steps == 6
    card = ShardSet.open(recipe.shards.uri).card
    assert build.identity(recipe, card, 3)["train.steps"] == 7


def test_a_part_of_the_samples_reaches_loader_and_checkpoints_but_not_the_shards(tmp_path):
    whole, half = tiny_recipe(tmp_path), tiny_recipe(tmp_path, data__fraction=0.5)
    shards = ShardSet.open(half.shards.uri)
    steps = [build.loaders(each, shards, ProcessGroup()).training.steps_per_epoch for each in (whole, half)]
    assert steps == [3, 2], "11 and 6 samples in batches of 4"
    assert build.identity(half, shards.card, 2)["data.fraction"] == 0.5
    assert half.digest() != whole.digest()
    assert half.changes_since(whole, resuming="training") == ["data.fraction was 1.0, is 0.5"]
    assert shard_spec(half) == shard_spec(whole)


def test_shards_of_less_than_a_byte_have_a_byte():
    assert shard_spec(load_recipe("loveda", ["shards.target_mb=1e-9"])).target_bytes == 1

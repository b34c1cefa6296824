import json
from dataclasses import replace

import pytest

from d2ls.errors import ShardError
from d2ls.shards import CARD_FILE, INDEX_FILE, INDEX_SCHEMA, SCHEMA_VERSION, DatasetCard, ShardSet
from tests.shards import make_shards


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "set"
    make_shards(folder, [2])
    return folder, make_shards(folder, [1], split="val").card


def test_the_card_travels_as_json(made):
    _, card = made
    assert DatasetCard.from_json(card.to_json()) == card
    assert json.loads(card.to_json())["classes"][1]["name"] == "water"


def test_a_set_opens_with_its_splits_and_rows(made):
    folder, card = made
    shards = ShardSet.open(str(folder))
    assert shards.card == card
    assert shards.splits == ("train", "val")
    assert shards.index.schema.equals(INDEX_SCHEMA)
    assert shards.rows("train").num_rows == 2
    for row in shards.index.to_pylist():
        assert sum(row["class_pixels"]) <= row["height"] * row["width"]
        assert "." not in row["key"]
    with pytest.raises(ShardError, match=r"no split 'test'; it has \['train', 'val'\]"):
        shards.rows("test")


def test_what_is_unfinished_damaged_or_newer_is_refused(made, tmp_path):
    folder, card = made
    with pytest.raises(ShardError, match="no finished shard set here"):
        ShardSet.open(str(tmp_path))
    for name in (CARD_FILE, INDEX_FILE):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / INDEX_FILE).write_bytes(b"PAR1")
    with pytest.raises(ShardError, match="not a shard index"):
        ShardSet.open(str(tmp_path))
    (tmp_path / CARD_FILE).write_text(replace(card, schema_version=99).to_json())
    with pytest.raises(ShardError, match=f"schema version 99, this release reads {SCHEMA_VERSION}: upgrade"):
        ShardSet.open(str(tmp_path))
    (tmp_path / CARD_FILE).write_text(replace(card, schema_version=SCHEMA_VERSION - 1).to_json())
    with pytest.raises(ShardError, match="shard the data set again"):
        ShardSet.open(str(tmp_path))
    with pytest.raises(ShardError, match="not a dataset card"):
        DatasetCard.from_json("[]")
    values = json.loads(card.to_json())
    for changes in ({"schema_version": "3"}, {"schema_version": None}, {"splits": []}):
        with pytest.raises(ShardError, match=r"schema version|the card is incomplete"):
            DatasetCard.from_json(json.dumps(values | changes))
    del values["mean"]
    with pytest.raises(ShardError, match="the card is incomplete"):
        DatasetCard.from_json(json.dumps(values))

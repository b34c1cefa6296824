"""From finished shards to index and card."""

import cv2
import numpy as np
import pytest

from d2ls.errors import ShardError
from d2ls.shards import INDEX_SCHEMA, ShardSet
from sharding.index_writer import delete_index, finished_card, write_index
from sharding.write import write_shard
from tests.loveda_shards import make, plan_of, spec_of


def test_mean_and_deviation_are_those_of_the_training_images(raw, tmp_path):
    card = make(spec_of(raw, tmp_path))
    files = (raw / "Train").rglob("images_png/*.png")
    pixels = np.concatenate([cv2.imread(str(file))[:, :, ::-1].reshape(-1, 3) for file in files]) / 255
    np.testing.assert_allclose(card.mean, pixels.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(card.std, pixels.std(axis=0), rtol=1e-9)


def test_the_index_has_a_row_for_every_sample_in_the_order_of_the_shards(raw, tmp_path):
    card = make(spec_of(raw, tmp_path, target_bytes=20_000))
    shards = ShardSet.open(str(tmp_path))
    assert shards.index.schema.equals(INDEX_SCHEMA)
    rows = shards.index.to_pylist()
    assert list(dict.fromkeys(row["shard"] for row in rows)) == [
        shard.path for split in card.splits.values() for shard in split.shards
    ]
    for name, split in card.splits.items():
        own = [row for row in rows if row["split"] == name]
        counts = np.sum([row["class_pixels"] for row in own], axis=0)
        assert split.samples == len(own)
        assert split.class_pixels == tuple(counts)
        assert split.ignored_pixels == len(own) * 64 * 64 - counts.sum()


def test_the_digest_is_of_content_not_of_its_division(raw, tmp_path):
    cards = [
        make(spec_of(raw, tmp_path / str(number), **changes))
        for number, changes in enumerate([{}, {"target_bytes": 20_000}, {"seed": 3}])
    ]
    assert len({card.digest for card in cards}) == 1
    assert len({card.extra["plan"] for card in cards}) == 3
    assert make(spec_of(raw, tmp_path / "less", splits=("train",))).digest != cards[0].digest


def test_what_is_not_finished_is_named_and_cannot_be_opened(raw, tmp_path):
    spec = spec_of(raw, tmp_path)
    plan = plan_of(spec)
    write_shard(plan.tasks[0], spec.uri)
    with pytest.raises(ShardError, match=r"1 shard\(s\) not finished, first val/val-00000\.tar"):
        write_index(plan, spec)
    write_shard(plan.tasks[1], spec.uri)
    assert finished_card(plan, spec) is None
    card = write_index(plan, spec)
    assert finished_card(plan, spec) == card
    delete_index(spec.uri)
    assert not list(tmp_path.glob("card.json")) + list(tmp_path.glob("index.parquet"))
    assert finished_card(plan, spec) is None


def test_shards_of_a_former_plan_are_deleted_and_nothing_else(raw, tmp_path):
    make(spec_of(raw, tmp_path, target_bytes=20_000))
    for name in ("train/notes.tar", "train/train-00009.txt"):
        (tmp_path / name).write_text("of somebody else")
    card = make(spec_of(raw, tmp_path))
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == [
        "notes.tar",
        "train-00000.tar",
        "train-00009.txt",
    ]
    assert len(list((tmp_path / "manifests").iterdir())) == 2
    assert len(card.splits["train"].shards) == 1

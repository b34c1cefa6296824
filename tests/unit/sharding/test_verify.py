"""A finished set is read back: every kind of difference is reported."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from d2ls.errors import ShardError
from d2ls.shards import CARD_FILE, INDEX_FILE, INDEX_SCHEMA
from sharding.verify import verify
from tests.loveda_shards import make, spec_of


@pytest.fixture
def made(raw, tmp_path):
    return tmp_path, make(spec_of(raw, tmp_path))


def change_index(folder, change):
    """Changes the rows of the index and writes it again."""
    rows = pq.read_table(folder / INDEX_FILE).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), folder / INDEX_FILE)


def test_a_sound_set_passes(made):
    folder, card = made
    assert verify(str(folder)) == card


def _other_pixels(rows):
    rows[0]["class_pixels"][0] += 1


def _other_checksum(rows):
    rows[0]["mask_crc32"] ^= 1


def _other_place(rows):
    rows[0]["image_offset"] += 512


def _lost_row(rows):
    del rows[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_other_pixels, "class pixels differ from the index"),
        (_other_checksum, "CRC of the mask differs"),
        (_other_place, r"member .*\.image\.tif is at .* the index says"),
        (_lost_row, "5 samples in the index, 6 in the card"),
    ],
)
def test_an_index_that_says_otherwise_is_found(made, change, message):
    folder, _ = made
    change_index(folder, change)
    with pytest.raises(ShardError, match=message):
        verify(str(folder))


def test_other_bytes_of_a_tar_and_a_stranger_are_found(made):
    folder, card = made
    path = folder / card.splits["val"].shards[0].path
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    (folder / "train" / "stranger.tar").write_bytes(b"")
    with pytest.raises(ShardError) as error:
        verify(str(folder))
    assert "2 difference(s)" in str(error.value)
    assert "val/val-00000.tar: size or BLAKE3 is not what the card says" in str(error.value)
    assert "train/stranger.tar: not in the card" in str(error.value)


def test_a_scene_in_two_splits_is_found_where_scenes_are_known(made):
    folder, _ = made

    def share(rows):
        rows[-1]["scene"] = rows[0]["scene"]

    change_index(folder, share)
    verify(str(folder))
    values = json.loads((folder / CARD_FILE).read_text())
    (folder / CARD_FILE).write_text(json.dumps(values | {"scene_check": "disjoint"}))
    with pytest.raises(ShardError, match=r"scene '\S+' is in \['train', 'val'\]"):
        verify(str(folder))


def test_another_digest_in_the_card_is_found(made):
    folder, _ = made
    values = json.loads((folder / CARD_FILE).read_text())
    values["splits"]["val"]["digest"] = "0" * 64
    (folder / CARD_FILE).write_text(json.dumps(values))
    with pytest.raises(ShardError, match="split val: the digest of the content is not the one in the card"):
        verify(str(folder))

"""What the headers of the raw data show before anything is written."""

import shutil

import cv2
import numpy as np
import pytest

from d2ls.errors import ConfigError, DataError
from sharding.scan import scan
from tests.loveda_shards import spec_of


@pytest.fixture
def copied(raw, tmp_path):
    return shutil.copytree(raw, tmp_path / "raw")


def masks(folder, part):
    return sorted((folder / part).rglob("masks_png/*.png"))


def test_a_sound_set_is_described(raw):
    result = scan(spec_of(raw))
    assert result.problems == ()
    assert [item.scene.split for item in result.scenes] == ["train"] * 6 + ["val"] * 3
    assert {(item.info.height, item.info.width, item.info.bands) for item in result.scenes} == {(64, 64, 3)}
    assert (result.dtype, result.scene_check) == ("uint8", "unknown"), "LoveDA names no scenes"
    assert result.classes.num_classes == 7
    result.raise_problems()


def test_all_problems_are_listed_at_once(copied):
    first, second, third = masks(copied, "Train")[:3]
    first.unlink()
    cv2.imwrite(str(second), np.ones((64, 60), np.uint8))
    third.write_bytes(b"no image")
    result = scan(spec_of(copied))
    assert len(result.problems) == 3
    text = "\n".join(result.problems)
    for file in (second, third):
        assert file.name in text
    with pytest.raises(DataError, match=r"3 problem\(s\) in the raw data, nothing was written"):
        result.raise_problems()


def test_splits_and_bands_are_chosen_by_name(raw):
    assert {item.scene.split for item in scan(spec_of(raw, splits=("val",))).scenes} == {"val"}
    assert any("tset" in problem for problem in scan(spec_of(raw, splits=("tset",))).problems)
    chosen = scan(spec_of(raw, bands=("blue", "red")))
    assert chosen.bands == ("blue", "red")
    assert {item.bands for item in chosen.scenes} == {(2, 0)}
    with pytest.raises(ConfigError, match=r"data\.bands: no band 'bleu'.*blue"):
        scan(spec_of(raw, bands=("bleu",)))


def test_only_training_may_label_a_pixel_twice(raw):
    assert {split: tiling.once for split, tiling in scan(spec_of(raw)).tilings.items()} == {
        "train": False,
        "val": True,
    }

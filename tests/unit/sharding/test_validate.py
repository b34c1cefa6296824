from dataclasses import replace

import numpy as np
import pytest

import sharding.headers
from d2ls.errors import DataError
from sharding.scan import scan
from sharding.sources.custom_spec import CustomClass
from sharding.tiling import Tiling
from sharding.validate import LabelCounts, require_labels, validate
from tests.custom_shards import BLUE, GREY, RED, build, custom_spec, make, spec
from tests.trees import save, texture


def test_pixels_are_counted_by_split_and_class(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding.validate, "BLOCK", 16)
    build(tmp_path, size=(40, 50))
    mask = np.full((40, 50, 3), RED, np.uint8)
    mask[:3], mask[3:5, :7] = BLUE, GREY
    for part in (1, 2):
        save(tmp_path / "c" / "lab" / f"part{part}_label.png", mask)
    result = validate(scan(spec(tmp_path, "out")))
    assert result.scan.problems == ()
    assert result.counts["val"] == LabelCounts((2 * (40 * 50 - 150 - 14), 2 * 150), 2 * 14)
    assert sum(count.labelled + count.ignored for count in result.counts.values()) == 8 * 40 * 50


def test_pixels_without_data_are_ignored(tmp_path):
    build(tmp_path, scenes="abd")
    image = texture(1, 40, 50)
    image[:10] = 0
    for part in (1, 2):
        save(tmp_path / "c" / "img" / f"part{part}.tif", image, nodata=0)
        save(tmp_path / "c" / "lab" / f"part{part}_label.png", np.full((40, 50, 3), RED, np.uint8))
    result = validate(scan(spec(tmp_path, "out", custom_spec(images=("*/img/*.{png,tif}",)))))
    assert result.counts["val"] == LabelCounts((2 * 30 * 50, 0), 2 * 10 * 50)


def test_of_each_file_the_first_fault_is_told_and_nothing_is_counted(tmp_path):
    build(tmp_path)
    mask = np.full((40, 50, 3), RED, np.uint8)
    mask[3, 4] = (1, 2, 3)
    save(tmp_path / "a" / "lab" / "part1_label.png", mask)
    path = tmp_path / "a" / "img" / "part1.png"
    path.write_bytes(path.read_bytes()[:900])
    result = validate(scan(spec(tmp_path, "out")))
    assert len(result.scan.problems) == 2
    assert "a/img/part1.png: damaged image" in result.scan.problems[0]
    assert "unknown label colour (1, 2, 3)" in result.scan.problems[1]
    assert result.counts == {}


def test_labels_are_read_before_sharding_only_until_all_is_seen(tmp_path, monkeypatch):
    build(tmp_path)
    result = scan(spec(tmp_path, "out"))
    read = []
    opened = sharding.headers.open_labels

    def recorded(labels, *rest, **more):
        read.append(str(labels))
        return opened(labels, *rest, **more)

    monkeypatch.setattr(sharding.headers, "open_labels", recorded)
    require_labels(result)
    assert [name.split("/")[-3] for name in read] == ["a", "c", "d"]


def test_a_class_without_training_pixels_is_an_error_in_custom_and_a_warning_in_published_data(tmp_path):
    build(tmp_path)
    lone = CustomClass("lone", (5, 5, 5))
    classes = (CustomClass("roof", RED), CustomClass("water", BLUE), lone)
    result = scan(spec(tmp_path, "out", custom_spec(classes=classes)))
    with pytest.raises(
        DataError, match=r"class 'lone' has no pixel in the training split 'train'.*`scored: false`"
    ):
        require_labels(result)
    published = replace(result, custom_classes=False)
    require_labels(published)
    assert [text.split(":")[0] for text in validate(published).scan.warnings] == [
        "class 'lone' has no pixel in the training split 'train' (33% of its pixels are ignored)",
        "class 'lone' has no pixel in the split 'val'",
        "class 'lone' has no pixel in the split 'test'",
    ]


@pytest.mark.parametrize(("split", "problems", "warnings"), [
    ({"train": ["a"], "val": ["b"], "test": ["c", "d"]}, [], []),
    ({"train": ["a"], "val": ["b"], "unused": ["c", "d"]}, [], ["roles.test names the split 'test'"]),
    ({"train": ["a"], "valid": ["b"], "test": ["c", "d"]},
     ["roles.val names the split 'val', which does not exist."], []),
    ({"test": ["*"]}, [], []),
])  # fmt: skip
def test_roles_whose_split_is_missing(tmp_path, split, problems, warnings):
    build(tmp_path)
    roles = {"train_split": "train", "val_split": "val", "test_split": "test"}
    result = scan(spec(tmp_path, "out", custom_spec({"scenes": split}), **roles))
    assert len(result.problems) == len(problems)
    assert len(result.warnings) == len(warnings)
    for text, expected in zip((*result.problems, *result.warnings), (*problems, *warnings), strict=True):
        assert text.startswith(expected)


def test_tiles_that_are_mostly_padding_are_a_warning(tmp_path):
    build(tmp_path, size=(40, 50))
    tiling = {"train": Tiling(128), "val": Tiling(48), "default": Tiling(None)}
    assert scan(spec(tmp_path, "out", tiling=tiling)).warnings == (
        "split train: tiles have 128 x 128 pixels, images about 40 x 50: 88% of the tiles is padding. "
        "Lower the size in data.tiling",
    )


def test_a_class_without_a_pixel_in_a_split_stands_in_the_card(tmp_path):
    build(tmp_path / "raw")
    for part in (1, 2):
        save(tmp_path / "raw" / "c" / "lab" / f"part{part}_label.png", np.full((40, 50, 3), RED, np.uint8))
    card = make(spec(tmp_path / "raw", tmp_path / "out"))
    assert card.extra["warnings"] == ["class 'water' has no pixel in the split 'val': it has no score there"]

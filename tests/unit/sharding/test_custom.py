import unicodedata
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from affine import Affine

from d2ls.errors import ConfigError, DataError
from sharding.plan import plan_shards
from sharding.scan import scan
from sharding.sources import open_source
from sharding.sources.custom_spec import CustomClass
from sharding.sources.splitting import draw
from sharding.tiling import Tiling
from sharding.validate import validate
from tests.custom_shards import BLUE, CLASSES, RED, build, custom_spec, make, spec
from tests.geodata.tiffs import PIXEL, PLACE, ids, pixels, tif
from tests.trees import blocks, save, texture


def read(root, split=None, **changes):
    """Scenes by split, what is missing, and what is left out."""
    source = open_source("custom", root, spec=custom_spec(split, **changes))
    splits = defaultdict(list)
    for scene in source.scenes():
        splits[scene.split].append(scene.id)
    return dict(splits), source.missing, {item.why: item.count for item in source.left_out}


def make_own(folder, split=None, **changes):
    return make(spec(folder / "raw", folder / "out", custom_spec(split, **changes)))


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def flat(root, *suffixes):
    """Images `images/<letter><suffix>` and their label images."""
    for letter, suffix in zip("abcdef", suffixes, strict=False):
        touch(root, f"images/{letter}{suffix}", f"labels/{letter}.png")


FLAT = {"images": ("images/*.tif",), "masks": ("labels/*.png",), "scene": None}
ALL_TRAIN = {"scenes": {"train": ["*"]}}


def test_wildcards_pair_and_scenes_keep_together(tmp_path):
    build(tmp_path / "raw")
    card = make(spec(tmp_path / "raw", tmp_path / "out"))
    assert {name: (split.samples, split.scenes) for name, split in card.splits.items()} == {
        "train": (4, 2), "val": (2, 1), "test": (2, 1),
    }  # fmt: skip
    assert card.scene_check == "disjoint"
    assert card.splits["train"].ignored_pixels > 0


@pytest.mark.parametrize(("split", "counts"), [
    ({"folders": {"train": ["a/*", "b/*"], "val": ["c/*"], "unused": ["d/*", "nowhere/*"]}}, {"train": 4, "val": 2}),
    ({"folders": {"train": ["{a,b}/*.PNG"], "val": ["c/*"], "unused": ["d/*"]}}, {"train": 4, "val": 2}),
    ({"fractions": {"train": 0.5, "val": 0.25, "test": 0.25}, "seed": 3}, {"train": 4, "val": 2, "test": 2}),
    ({"fractions": {"test": 1.0}}, {"test": 8}),
])  # fmt: skip
def test_splits_by_folder_and_by_fraction(tmp_path, split, counts):
    touch(tmp_path, *(f"{s}/img/part{n}.png" for s in "abcd" for n in (1, 2)))
    touch(tmp_path, *(f"{s}/lab/part{n}_label.png" for s in "abcd" for n in (1, 2)))
    splits, missing, _ = read(tmp_path, split)
    assert {name: len(ids) for name, ids in splits.items()} == counts
    assert missing == []
    assert not {i.split("/")[0] for i in splits.get("train", ())} & {
        i.split("/")[0] for i in splits.get("val", ())
    }


def test_fractions_are_of_scenes_and_seeded():
    units = [f"s{number}" for number in range(10)]
    shares = {"train": 0.7, "val": 0.15, "test": 0.15}
    split = draw(units, shares, 5)
    assert split == draw(units, shares, 5)
    assert split != draw(units, shares, 6)
    assert sorted(split) == sorted(units)
    counts = [list(split.values()).count(name) for name in shares]
    assert counts == [7, 2, 1]
    few = draw(units[:3], {"train": 0.9, "val": 0.05, "test": 0.05}, 0)
    assert sorted(few.values()) == ["test", "train", "val"]
    with pytest.raises(
        ConfigError, match=r"2 scene\(s\) cannot fill 3 splits .*data\.custom\.split\.fractions"
    ):
        draw(units[:2], {"train": 0.4, "val": 0.3, "test": 0.3}, 0)


def test_lists_that_data_sets_ship_divide_the_images(tmp_path):
    flat(tmp_path, *[".tif"] * 6)
    (tmp_path / "train.txt").write_text("﻿# names\na\nimages/b.tif labels/b.png\n\n./images/c.tif\n", "utf-8")
    (tmp_path / "val.txt").write_text("/images/d.tif,7\n")
    splits, missing, left_out = read(
        tmp_path, {"lists": {"train": ["train.txt"], "val": ["val.txt"]}}, **FLAT
    )
    assert (splits, missing) == ({"train": ["a", "b", "c"], "val": ["d"]}, [])
    assert left_out == {"in no file of data.custom.split.lists": 2}


def test_lines_of_lists_that_fit_nothing_or_two_are_counted_and_named(tmp_path):
    touch(tmp_path, *(f"{area}/{kind}/1.{suffix}" for area in ("n", "s")
                      for kind, suffix in (("img", "tif"), ("lab", "png"))))  # fmt: skip
    (tmp_path / "train.txt").write_text("1\nn/img/1\nx\n")
    (tmp_path / "val.txt").write_text("n/img/1.tif\n")
    files = {"images": ("*/img/*.tif",), "masks": ("*/lab/*.png",), "scene": None}
    _, missing, _ = read(tmp_path, {"lists": {"train": ["train.txt"], "val": ["val.txt"]}}, **files)
    assert len(missing) == 2
    assert "train.txt: 2 of 3 lines name no image, or several: line 1 ('1') fits 2 images" in missing[0]
    assert "n/1: data.custom.split.lists puts it into both train and val" in missing[1]
    with pytest.raises(ConfigError, match=r"split\.lists: no file 'trian\.txt' .* Did you mean train\.txt"):
        read(tmp_path, {"lists": {"train": ["trian.txt"]}}, **files)


def test_globs_take_lists_and_braces_and_suffixes_of_any_case(tmp_path):
    flat(tmp_path, ".tif", ".TIF", ".Tiff", ".jpg")
    (tmp_path / "labels" / "b.png").rename(tmp_path / "labels" / "b.PNG")
    for images in (("images/*.{tif,tiff,jpg}",), ("images/*.tif", "images/*.tiff", "images/*.jpg")):
        splits, missing, left_out = read(tmp_path, ALL_TRAIN, **{**FLAT, "images": images})
        assert (splits, missing, left_out) == ({"train": ["a", "b", "c", "d"]}, [], {})


def test_what_no_glob_fits_is_counted(tmp_path):
    flat(tmp_path, ".tif", ".tif", ".jpg", ".jpg")
    touch(tmp_path, "images/a.tfw", "readme.txt", "labels/.c.png")
    for name in "cd":
        (tmp_path / "labels" / f"{name}.png").unlink()
    assert read(tmp_path, ALL_TRAIN, **FLAT)[2] == {
        ".jpg files that fit neither data.custom.images nor data.custom.masks": 2
    }


def test_images_without_labels_can_be_declared_unused(tmp_path):
    flat(tmp_path, ".tif", ".tif")
    touch(tmp_path, "images/test/x.tif", "images/test/y.tif", "labels/z.png")
    files = {**FLAT, "images": ("images/**/*.tif",), "masks": ("labels/**/*.png",)}
    _, missing, _ = read(tmp_path, ALL_TRAIN, **files)
    assert len(missing) == 3
    assert 'data.custom.unused (for instance ["images/test/x.tif"])' in missing[0]
    assert "labels/z.png: no image for this label image" in missing[2]
    splits, missing, left_out = read(tmp_path, ALL_TRAIN, **files, unused=("images/test/*", "labels/z.png"))
    assert (splits, missing) == ({"train": ["a", "b"]}, [])
    assert left_out == {"named in data.custom.unused": 3}
    folders = {"folders": {"train": ["images/?.tif"], "unused": ["images/test/*"]}}
    _, missing, left_out = read(tmp_path, folders, **files, unused=("labels/z.png",))
    assert missing == []
    assert left_out["data.custom.split puts them into 'unused'"] == 2


def test_a_file_that_fits_both_globs_is_a_label_image(tmp_path):
    touch(tmp_path, "a.tif", "a_label.tif", "b.tif", "b_label.tif")
    files = {"images": ("*.tif",), "masks": ("*_label.tif",), "scene": None}
    assert read(tmp_path, ALL_TRAIN, **files) == ({"train": ["a", "b"]}, [], {})


def test_names_pair_in_one_unicode_form(tmp_path):
    composed, decomposed = "caf\u00e9", unicodedata.normalize("NFD", "caf\u00e9")
    touch(tmp_path, f"images/{composed}.tif", f"labels/{decomposed}.png")
    split = {"scenes": {"train": [decomposed]}}
    assert read(tmp_path, split, **FLAT) == ({"train": [composed]}, [], {})


def test_several_ids_may_mean_one_class(tmp_path):
    build(tmp_path / "raw", codes=(1, 2, 7, 0))
    classes = (CustomClass("built", RED, (1, 7)), CustomClass("water", BLUE, (2,)))
    card = make(spec(tmp_path / "raw", tmp_path / "out", custom_spec(classes=classes, ignored=(0,))))
    assert card.splits["train"].class_pixels[0] > 1.5 * card.splits["train"].class_pixels[1]


def test_a_scene_in_two_splits_is_refused(tmp_path):
    build(tmp_path / "raw")
    split = {"folders": {"train": ["a/*", "b/*", "c/img/part1*"], "val": ["c/img/part2*"], "test": ["d/*"]}}
    with pytest.raises(
        DataError, match=r"1 scene.s. are in more than one split, for instance 'c' in train and val"
    ):
        make(spec(tmp_path / "raw", tmp_path / "out", custom_spec(split)))


def test_unknown_scenes_are_said_to_be_unknown(tmp_path):
    build(tmp_path / "raw")
    split = {"folders": {"train": ["a/*", "b/*"], "val": ["c/*"], "test": ["d/*"]}}
    assert (
        scan(spec(tmp_path / "raw", tmp_path / "out", custom_spec(split, scene=None))).scene_check
        == "unknown"
    )


def test_the_check_lists_everything_at_once_and_writes_nothing(tmp_path):
    build(tmp_path / "raw")
    raw = tmp_path / "raw"
    (raw / "a" / "lab" / "part1_label.png").unlink()
    (raw / "b" / "img" / "part1.png").unlink()
    save(raw / "b" / "img" / "part2.png", texture(1, 40, 51))
    save(raw / "c" / "img" / "part1.png", texture(1, 40, 50, 3, "uint16"))
    save(raw / "c" / "img" / "part2.png", texture(1, 40, 50, 1))
    (raw / "d" / "img" / "part1.png").write_bytes(b"broken")
    mask = blocks(31, 40, 50, (RED, BLUE, (9, 9, 9)))
    mask[3, 4] = (1, 2, 3)
    save(raw / "d" / "lab" / "part2_label.png", mask)
    save(raw / "e" / "img" / "part1.png", texture(1, 40, 50))
    save(raw / "e" / "lab" / "part1_label.png", blocks(1, 40, 50, (RED, BLUE)))
    headers = (
        "a/img/part1.png: no label image", "b/lab/part1_label.png: no image for this label image",
        "part2.png is 40x51 (height x width)", "images are of several types (uint16, uint8)",
        "c/img/part2.png: 1 band(s), expected 3 (red, green, blue)", "d/img/part1.png: not a readable image",
        "split.scenes puts it into no split (scene 'e')",
    )  # fmt: skip
    pixels = ("part2_label.png: unknown label colour (1, 2, 3) in 1 pixels, first at row 3 column 4",)
    result = scan(spec(raw, tmp_path / "out"))
    seen = [text for text in validate(result).scan.problems if text not in result.problems]
    for listed, expected in ((result.problems, headers), (seen, pixels)):
        assert len(listed) == len(expected), listed
        for text in expected:
            assert any(text in problem for problem in listed), (text, listed)
    with pytest.raises(DataError, match=r"7 problem\(s\) in the raw data, nothing was written"):
        make(spec(raw, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("changes", "message"), [
    ({"images": ("*/pictures/*.png",)}, r"data\.custom\.images: '\*/pictures/\*\.png' matches no file below"),
    ({"images": ("*/img/part?.png",), "masks": ("*/img/part*",)},
     r"every file that fits \*/img/part\?\.png fits data\.custom\.masks too"),
    ({"split": {"scenes": {"train": ["aa"], "val": ["c"], "test": ["d"]}}},
     r"data\.custom\.split\.scenes\.train: 'aa' matches nothing\. Did you mean a\?"),
    ({"split": {"seed": 1}},
     r"data\.custom\.split: give one of folders, scenes, lists, fractions, areas, blocks, fold; given: none"),
    ({"split": {"fractions": {"train": 0.9}}}, r"data\.custom\.split\.fractions: shares must be above 0 and add up"),
    ({"classes": (CLASSES[0], CustomClass("w", BLUE, (3,)))}, "ids .3. and colours .* are mixed; .*label_values"),
    ({"classes": (CustomClass("roof", RED, (1,)), CustomClass("w", RED, (3,)))},
     r"data\.custom\.classes: 'roof' and 'w' have one color \(255, 0, 0\)"),
    ({"ignored": (RED,)}, r"code \(255, 0, 0\) has two meanings, class 'roof' and ignored"),
    ({"bands": ("red",)}, r"3 band\(s\), expected 1"),
    ({"scene": r"s\d"}, r"data\.custom\.scene: s\\d has no group in parentheses"),
    ({"scene": r"(s\d"}, r"data\.custom\.scene: \(s\\d is not a regular expression: missing \)"),
    ({"scene": r"^(x\d+)/"}, r"a/img/part1\.png: data\.custom\.scene \(\^\(x\\d\+\)/\) finds no scene name"),
])  # fmt: skip
def test_impossible_descriptions_are_refused(tmp_path, changes, message):
    build(tmp_path / "raw")
    with pytest.raises((ConfigError, DataError), match=message):
        make_own(tmp_path, **changes)


def test_files_with_the_same_wildcards_are_named(tmp_path):
    touch(tmp_path, "n/a.tif", "s/a.tif", "labels/a.png")
    with pytest.raises(
        ConfigError, match=r"n/a\.tif and .*s/a\.tif the same wildcards \(a\); use a narrower glob"
    ):
        read(tmp_path, ALL_TRAIN, images=("n/*.tif", "s/*.tif"), masks=("labels/*.png",))


def test_bands_and_16_bit_are_stated_in_the_card(tmp_path):
    for name in ("a", "b", "c"):
        image = texture(ord(name), 70, 90, 5, "uint16")
        save(tmp_path / "raw" / name / "img" / "x.tif", image)
        save(tmp_path / "raw" / name / "lab" / "x_label.tif", blocks(1, 70, 90, (RED, BLUE)))
    values = {
        "bands": ("b4", "b1"), "max_value": 10000, "ground_sampling_distance": 10, "license": "CC0",
        "tiling": {"default": Tiling(64, 32, "mirror")},
    }  # fmt: skip
    files = {"images": ("*/img/*.tif",), "masks": ("*/lab/*_label.tif",), "ignored": ()}
    data = custom_spec(
        {"scenes": {"train": ["a"], "val": ["b"], "test": ["c"]}},
        bands=("b1", "b2", "b3", "b4", "b5"),
        **files,
    )
    card = make(spec(tmp_path / "raw", tmp_path / "out", data, **values))
    image = texture(ord("a"), 70, 90, 5, "uint16")[..., [3, 0]] / 10000
    assert (card.bands, card.dtype, card.max_value, card.license) == (("b4", "b1"), "uint16", 10000, "CC0")
    assert card.ground_sampling_distance == 10
    assert card.splits["val"].ignored_pixels > 0
    assert sum(card.splits["val"].class_pixels) == 70 * 90
    assert sum(card.splits["train"].class_pixels) > 70 * 90
    np.testing.assert_allclose(card.mean, image.mean((0, 1)), rtol=0.05)
    assert card.tiling["val"]["once"] is True
    with pytest.raises(ConfigError, match=r"data\.bands: no band 'b9'\. Allowed: b1, b2, b3, b4, b5"):
        make(spec(tmp_path / "raw", tmp_path / "o", data, bands=("b9",)))


def test_every_problem_of_a_file_names_a_way_out(tmp_path):
    build(tmp_path)
    (tmp_path / "a" / "img" / "part1.png").write_bytes(b"broken")
    save(tmp_path / "b" / "img" / "part1.png", texture(1, 41, 50))
    save(tmp_path / "c" / "lab" / "part1_label.png", texture(1, 40, 50, 1)[..., 0])
    result = scan(spec(tmp_path, "out"))
    assert len(result.problems) == 3
    for text, key in zip(result.problems, ("unused", "images", "classes"), strict=True):
        assert f"data.custom.{key}" in text


def test_splits_that_are_not_made_or_not_there_are_named(tmp_path):
    build(tmp_path)
    result = scan(spec(tmp_path, "out", splits=("train", "val")))
    assert [(item.why, item.count) for item in result.left_out] == [("split 'test' is not in data.splits", 2)]
    result = scan(spec(tmp_path, "out", splits=("train", "vall")))
    assert result.problems == ("data.splits names the split 'vall', which does not exist. Did you mean val?",)
    result = scan(spec(tmp_path, "out", tiling={"tset": Tiling(32)}))
    assert result.problems == (
        "data.tiling names the split 'tset', which does not exist. Did you mean test?",
    )


def test_samples_have_short_keys_of_their_own(tmp_path):
    build(tmp_path)
    for name in ("x-y z", "x-y+z"):
        save(tmp_path / "a" / "img" / f"{name}.png", texture(1, 40, 50))
        save(tmp_path / "a" / "lab" / f"{name}_label.png", np.full((40, 50, 3), RED, np.uint8))
    shard_spec = spec(tmp_path, "out")
    result = scan(shard_spec)
    with pytest.raises(DataError, match="two samples would be called 'train_a_x-y_z'"):
        plan_shards(shard_spec, result)
    scenes = [
        replace(item, scene=replace(item.scene, id=f"{'x' * 90}/{k}")) for k, item in enumerate(result.scenes)
    ]
    planned = plan_shards(shard_spec, replace(result, scenes=tuple(scenes)))
    assert {len(key) for task in planned.tasks for cut in task.cuts for key, _ in cut.tiles} == {64}


@pytest.mark.parametrize(("scales", "metres"), [
    ((1, 1, 1.001), PIXEL), ((1, 1, 2), None), ((1, 1, None), None),
])  # fmt: skip
def test_the_pixel_size_that_all_images_state_is_in_the_card(tmp_path, scales, metres):
    for name, scale in zip("abc", scales, strict=True):
        place = PLACE @ Affine.scale(scale) if scale else None
        tif(tmp_path / "raw" / "img" / f"{name}.tif", pixels(), transform=place)
        tif(tmp_path / "raw" / "lab" / f"{name}.tif", ids(), transform=place)
    classes = (CustomClass("a", RED, (0,)), CustomClass("b", BLUE, (1,)))
    files = {
        "images": ("img/*.tif",),
        "masks": ("lab/*.tif",),
        "classes": classes,
        "ignored": (2,),
        "scene": None,
    }
    data = custom_spec({"scenes": {"train": ["a"], "val": ["b"], "test": ["c"]}}, **files)
    assert scan(spec(tmp_path / "raw", tmp_path / "out", data)).ground_sampling_distance == metres
    stated = spec(tmp_path / "raw", tmp_path / "out", data, ground_sampling_distance=10)
    assert scan(stated).ground_sampling_distance == 10

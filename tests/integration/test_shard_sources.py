"""Seven tests for each of the six benchmarks, on tiny trees with the true names."""

import json
from collections import Counter

import cv2
import numpy as np
import pytest
from PIL import Image

from d2ls.errors import ConfigError, DataError, LabelError
from d2ls.shards import ShardSet
from d2ls.shards.codecs import decode_image, decode_mask
from d2ls.storage import read_range
from pipeline.config.recipe import load_recipe
from pipeline.shard import main
from pipeline.sharding.run import ensure_shards
from sharding.sources import open_source
from tests.trees import TREES, save, texture

every_source = pytest.mark.parametrize("tree", TREES.values(), ids=list(TREES))


def recipe(tree, root, uri, *overrides):
    return load_recipe(tree.source, [f"data.root={root}", f"shards.uri={uri}", *tree.overrides, *overrides])


def read_mask(tree, root):
    with Image.open(root / tree.mask) as image:
        return np.array(image)


def sample(shards, split, position=0):
    row = shards.rows(split).slice(position, 1).to_pylist()[0]
    tar = shards.shard_uri(row["shard"])
    image = read_range(tar, row["image_offset"], row["image_length"])
    mask = read_range(tar, row["mask_offset"], row["mask_length"])
    meta = json.loads(read_range(tar, row["meta_offset"], row["meta_length"]))
    return decode_image(image, row["image_suffix"]), decode_mask(mask), meta


@every_source
def test_reads_the_tree(tree, tmp_path):
    tree.build(tmp_path)
    source = open_source(tree.source, tmp_path)
    scenes = list(source.scenes())
    assert Counter(s.split for s in scenes if s.mask) == tree.splits
    assert Counter(s.split for s in scenes if not s.mask) == tree.hidden
    assert source.missing == []
    assert len({(s.split, s.id) for s in scenes}) == len(scenes)


@every_source
def test_splits_keep_scenes_apart_or_say_unknown(tree, tmp_path):
    tree.build(tmp_path / "raw")
    card = ensure_shards(recipe(tree, tmp_path / "raw", tmp_path / "out"), no_ray=True)
    assert {name: split.scenes > 0 for name, split in card.splits.items()} == dict.fromkeys(tree.splits, True)
    assert card.scene_check == tree.scene_check
    assert card.extra.get("unlabelled", {}) == tree.hidden
    shards = ShardSet.open(str(tmp_path / "out"))
    scenes = {name: set(shards.rows(name)["scene"].to_pylist()) for name in shards.splits}
    names = list(scenes)
    assert all(not scenes[a] & scenes[b] for i, a in enumerate(names) for b in names[i + 1 :])


@every_source
def test_labels_become_class_ids(tree, tmp_path):
    tree.build(tmp_path / "raw")
    source = open_source(tree.source, tmp_path / "raw")
    raw = read_mask(tree, tmp_path / "raw")
    expected = np.full(raw.shape[:2], 254, np.uint8)
    for code, value in zip(tree.codes, tree.ids, strict=True):
        expected[(raw == code).all(-1) if raw.ndim == 3 else raw == code] = value
    ids = source.codes.encode(raw, where=tree.mask)
    np.testing.assert_array_equal(ids, expected)
    assert set(np.unique(ids)) - {255} == set(range(source.classes.num_classes))

    ensure_shards(recipe(tree, tmp_path / "raw", tmp_path / "out", "data.tiling={default: {}}"), no_ray=True)
    shards = ShardSet.open(str(tmp_path / "out"))
    result = [
        sample(shards, name, k) for name in shards.splits for k in range(shards.card.splits[name].samples)
    ]
    assert any(np.array_equal(mask, expected) for _, mask, _ in result)
    assert all(image.shape == (*tree.size, 3) for image, _, _ in result)


@every_source
def test_an_unknown_label_stops_with_file_value_count_and_position(tree, tmp_path):
    tree.build(tmp_path / "raw")
    raw = read_mask(tree, tmp_path / "raw")
    raw[5, 7] = raw[6, 2] = tree.stray
    save(tmp_path / "raw" / tree.mask, raw, tree.palette)
    value = str(tree.stray).replace("(", r"\(").replace(")", r"\)")
    message = rf"{tree.mask}: unknown label (id|colour) {value} in 2 pixels, first at row 5 column 7"
    with pytest.raises(LabelError, match=message):
        ensure_shards(recipe(tree, tmp_path / "raw", tmp_path / "out"), no_ray=True)
    assert not list((tmp_path / "out").glob("*.json"))
    stray = f"data.treat_as_ignored=[{list(tree.stray) if isinstance(tree.stray, tuple) else tree.stray}]"
    card = ensure_shards(recipe(tree, tmp_path / "raw", tmp_path / "out", stray), no_ray=True)
    assert card.extra["unexpected_labels"] == {str(tree.stray): 2}


@every_source
def test_a_missing_mask_is_listed_and_nothing_is_written(tree, tmp_path):
    tree.build(tmp_path / "raw")
    (tmp_path / "raw" / tree.mask).unlink()
    with pytest.raises(DataError, match=r"1 problem\(s\) in the raw data.*\n.*no (full )?label image for it"):
        ensure_shards(recipe(tree, tmp_path / "raw", tmp_path / "out"), no_ray=True)
    assert not (tmp_path / "out").exists()


@every_source
def test_the_digest_is_of_content_not_of_place(tree, tmp_path):
    digests = []
    for place in ("a", "b/c"):
        tree.build(tmp_path / place)
        card = ensure_shards(recipe(tree, tmp_path / place, tmp_path / place / "out"), no_ray=True)
        digests.append(
            (card.digest, [shard.blake3 for split in card.splits.values() for shard in split.shards])
        )
    assert digests[0] == digests[1]
    raw = read_mask(tree, tmp_path / "a")
    raw[0, 0] = next(code for code in tree.codes if (raw[0, 0] != code).any())
    save(tmp_path / "a" / tree.mask, raw, tree.palette)
    changed = ensure_shards(recipe(tree, tmp_path / "a", tmp_path / "changed"), no_ray=True)
    assert changed.digest != digests[0][0]


@every_source
def test_the_command_shards_checks_and_verifies(tree, tmp_path, capsys):
    tree.build(tmp_path / "raw")
    arguments = [tree.source, f"data.root={tmp_path / 'raw'}", f"shards.uri={tmp_path / 'out'}", "--no-ray"]
    assert main([*arguments, "--check"]) == 0
    assert not (tmp_path / "out").exists()
    assert main(arguments) == 0
    assert main([*arguments, "--verify"]) == 0
    shown = capsys.readouterr().out
    assert "no problems found" in shown
    assert "checksums, counts, digests and splits agree" in shown
    assert ShardSet.open(str(tmp_path / "out")).card.digest in shown


def test_paper_protocols_do_as_the_released_scripts(tmp_path):
    for name in ("potsdam", "vaihingen", "grass"):
        TREES[name].build(tmp_path / name)
        scenes = list(open_source(name, tmp_path / name, protocol="paper").scenes())
        assert {s.split for s in scenes} == ({"train", "val"} if name == "grass" else {"train", "test"})
    frame = tmp_path / "uavid" / "uavid_train" / "seq1"
    save(frame / "Images" / "000000.png", texture(1, 2160, 3840))
    save(frame / "Labels" / "000000.png", np.zeros((2160, 3840, 3), np.uint8))
    card = ensure_shards(
        recipe(TREES["uavid"], tmp_path / "uavid", tmp_path / "out", "data.protocol=paper"), no_ray=True
    )
    assert card.splits["train"].samples == 8
    assert card.splits["train"].class_pixels[7] == 2048 * 3840
    assert card.splits["train"].ignored_pixels == 2048 * 256
    windows = {tuple(sample(ShardSet.open(str(tmp_path / "out")), "train", k)[2]["window"]) for k in range(8)}
    assert windows == {(row, column, 1024, 1024) for row in (112, 1136) for column in (0, 1024, 2048, 3072)}


def test_potsdam_takes_other_imagery_and_labels(tmp_path):
    TREES["potsdam"].build(tmp_path / "raw")
    more = ("data.options.imagery=RGBIR", "data.options.eval_labels=full", "data.options.drop=[]")
    card = ensure_shards(recipe(TREES["potsdam"], tmp_path / "raw", tmp_path / "out", *more), no_ray=True)
    assert card.bands == ("red", "green", "blue", "nir")
    assert card.splits["train"].scenes == 3
    eroded = ensure_shards(recipe(TREES["potsdam"], tmp_path / "raw", tmp_path / "eroded"), no_ray=True)
    assert eroded.extra["labels"] == {"train": "full", "val": "eroded", "test": "eroded"}
    assert eroded.splits["test"].ignored_pixels > card.splits["test"].ignored_pixels
    _, _, meta = sample(ShardSet.open(str(tmp_path / "out")), "train")
    assert meta["crs"] == "EPSG:32633"
    assert meta["transform"] == [0.05, 0.0, 366976.0, 0.0, -0.05, 5808000.0]


def test_a_cloud_scene_in_two_splits_is_refused_and_can_be_divided_anew(tmp_path):
    tree = TREES["cloud"]
    tree.build(tmp_path / "raw")
    for folder in ("img_dir", "ann_dir"):
        old = tmp_path / "raw" / folder / "train" / "LC81570412014106LGN00_0.png"
        old.rename(tmp_path / "raw" / folder / "val" / old.name)
    with pytest.raises(DataError, match=r"'LC81570412014106LGN00' in train and val.*resplit=true"):
        ensure_shards(recipe(tree, tmp_path / "raw", tmp_path / "out"), no_ray=True)
    card = ensure_shards(recipe(tree, tmp_path / "raw", tmp_path / "out", "data.protocol=paper"), no_ray=True)
    assert card.scene_check == "shared"
    card = ensure_shards(
        recipe(tree, tmp_path / "raw", tmp_path / "out2", "data.options.resplit=true"), no_ray=True
    )
    assert card.scene_check == "disjoint"


def test_loveda_offers_a_test_part_that_has_labels(tmp_path):
    TREES["loveda"].build(tmp_path)
    for path in (tmp_path / "Test").glob("*/images_png/*.png"):
        cv2.imwrite(str(path.parents[1] / "m.png"), np.ones((64, 64), np.uint8))
        (path.parents[1] / "masks_png").mkdir()
        (path.parents[1] / "m.png").rename(path.parents[1] / "masks_png" / path.name)
    scenes = list(open_source("loveda", tmp_path).scenes())
    assert Counter(s.split for s in scenes if s.mask) == {"train": 5, "val": 2, "test": 2}


@pytest.mark.parametrize("source", ["loveda", "uavid"])
def test_the_paper_trains_on_val_too(source, tmp_path):
    tree = TREES[source]
    tree.build(tmp_path / "raw")
    clean = [scene.id for scene in open_source(source, tmp_path / "raw").scenes() if scene.mask]
    more = ("data.protocol=paper", "data.tiling={default: {}}", "roles.val=val", "roles.test=test")
    card = ensure_shards(recipe(tree, tmp_path / "raw", tmp_path / "out", *more), no_ray=True)
    assert (card.splits["train"].samples, card.splits["val"].samples) == (len(clean), tree.splits["val"])
    assert card.scene_check == "shared"
    assert sum("train holds the scenes of val too" in text for text in card.extra["departures"]) == 1


@pytest.mark.parametrize("source", ["loveda", "uavid"])
def test_recipes_hold_out_training_scenes_that_select(source, tmp_path):
    tree = TREES[source]
    tree.build(tmp_path)
    official = {scene.id: scene.split for scene in open_source(source, tmp_path).scenes()}
    options = {"select": {"fraction": 0.4, "seed": 1}}
    scenes = list(open_source(source, tmp_path, **options).scenes())
    taken = {scene.id for scene in scenes if scene.split == "select"}
    assert taken
    assert {official[key] for key in taken} == {"train"}
    assert [s.id for s in scenes if s.split == "val"] == [
        key for key, split in official.items() if split == "val"
    ]
    groups = {scene.split: {s.group or s.id for s in scenes if s.split == scene.split} for scene in scenes}
    assert not groups["train"] & groups["select"]
    assert "select" in (recipe := load_recipe(source)).data.options
    assert recipe.roles.val == "select"
    with pytest.raises(ConfigError, match=r"data\.options\.select"):
        open_source(source, tmp_path, select={"fraction": 2})

import numpy as np
import pytest

from d2ls.errors import ConfigError, DataError
from pipeline.config.recipe import parse_recipe
from pipeline.shard import check, run
from sharding.sources.splitting import draw
from tests.trees import blocks, save, texture

RED, BLUE, GREY = (255, 0, 0), (0, 0, 255), (9, 9, 9)
CLASSES = [{"name": "roof", "color": RED}, {"name": "water", "color": BLUE}]


def build(root, scenes=("a", "b", "c", "d"), codes=(RED, BLUE, GREY), size=(40, 50)):
    for number, scene in enumerate(scenes):
        for part in (1, 2):
            save(root / scene / "img" / f"part{part}.png", texture(10 * number + part, *size))
            save(root / scene / "lab" / f"part{part}_label.png", blocks(10 * number + part, *size, codes))


def recipe(root, uri, split=None, *, data=None, **custom):
    own = {
        "images": "*/img/*.png", "masks": "*/lab/*_label.png", "classes": CLASSES, "ignored": [GREY],
        "scene": "folder", "split": split or {"scenes": {"train": ["a", "b"], "val": ["c"], "test": ["d"]}}, **custom,
    }  # fmt: skip
    values = {"source": "custom", "root": str(root), "custom": own, **(data or {})}
    return parse_recipe({"name": "own", "data": values, "shards": {"uri": str(uri)}})


def test_wildcards_pair_and_scenes_keep_together(tmp_path):
    build(tmp_path / "raw")
    card = run(recipe(tmp_path / "raw", tmp_path / "out"), inline=True)
    assert {name: (split.samples, split.scenes) for name, split in card.splits.items()} == {
        "train": (4, 2), "val": (2, 1), "test": (2, 1),
    }  # fmt: skip
    assert card.scene_check == "disjoint"
    assert card.splits["train"].ignored_pixels > 0


@pytest.mark.parametrize(("split", "counts"), [
    ({"folders": {"train": ["a/*", "b/*"], "val": ["c/*"], "unused": ["d/*", "nowhere/*"]}}, {"train": 4, "val": 2}),
    ({"fractions": {"train": 0.5, "val": 0.25, "test": 0.25}, "seed": 3}, {"train": 4, "val": 2, "test": 2}),
])  # fmt: skip
def test_splits_by_folder_and_by_fraction(tmp_path, split, counts):
    build(tmp_path / "raw")
    card = run(recipe(tmp_path / "raw", tmp_path / "out", split), inline=True)
    assert {name: part.samples for name, part in card.splits.items()} == counts
    assert card.scene_check == "disjoint"


def test_fractions_are_of_scenes_and_seeded():
    units = [f"s{number}" for number in range(10)]
    split = draw(units, {"train": 0.7, "val": 0.15, "test": 0.15}, 5)
    assert split == draw(units, {"train": 0.7, "val": 0.15, "test": 0.15}, 5)
    assert split != draw(units, {"train": 0.7, "val": 0.15, "test": 0.15}, 6)
    assert sorted(split.values()) == ["test"] * 2 + ["train"] * 7 + ["val"] or len(set(split.values())) == 3
    assert set(draw(units[:3], {"train": 0.9, "val": 0.05, "test": 0.05}, 0).values()) == {
        "train",
        "val",
        "test",
    }
    with pytest.raises(ConfigError, match=r"2 scene\(s\) cannot fill 3 splits"):
        draw(units[:2], {"train": 0.4, "val": 0.3, "test": 0.3}, 0)


def test_several_ids_may_mean_one_class(tmp_path):
    build(tmp_path / "raw", codes=(1, 2, 7, 0))
    classes = [
        {"name": "built", "color": RED, "codes": [1, 7]},
        {"name": "water", "color": BLUE, "codes": [2]},
    ]
    card = run(recipe(tmp_path / "raw", tmp_path / "out", classes=classes, ignored=[0]), inline=True)
    assert card.splits["train"].class_pixels[0] > 1.5 * card.splits["train"].class_pixels[1]


def test_a_scene_in_two_splits_is_refused(tmp_path):
    build(tmp_path / "raw")
    split = {"folders": {"train": ["a/*", "b/*", "c/img/part1*"], "val": ["c/img/part2*"], "test": ["d/*"]}}
    with pytest.raises(
        DataError, match=r"1 scene.s. stand in more than one split, for instance 'c' in train and val"
    ):
        run(recipe(tmp_path / "raw", tmp_path / "out", split), inline=True)


def test_unknown_scenes_are_said_to_be_unknown(tmp_path):
    build(tmp_path / "raw")
    split = {"folders": {"train": ["a/*", "b/*"], "val": ["c/*"], "test": ["d/*"]}}
    assert (
        run(recipe(tmp_path / "raw", tmp_path / "out", split, scene=None), inline=True).scene_check
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
    mask = blocks(31, 40, 50, (RED, BLUE, GREY))
    mask[3, 4] = (1, 2, 3)
    save(raw / "d" / "lab" / "part2_label.png", mask)
    save(raw / "e" / "img" / "part1.png", texture(1, 40, 50))
    save(raw / "e" / "lab" / "part1_label.png", blocks(1, 40, 50, (RED, BLUE)))
    expected = (
        "a/img/part1.png: no label image", "b/lab/part1_label.png: no image for this label image",
        "part2.png is 40x51 (height x width)", "images are of several types (uint16, uint8)",
        "c/img/part2.png: 1 band(s), expected 3 (red, green, blue)", "d/img/part1.png: not a readable image",
        "part2_label.png: unknown label colour (1, 2, 3) in 1 pixels, first at row 3 column 4",
        "split.scenes puts it into no split (scene 'e')",
    )  # fmt: skip
    problems = check(recipe(raw, tmp_path / "out"), inline=True)
    for text in expected:
        assert any(text in problem for problem in problems), (text, problems)
    assert len(problems) == len(expected)
    with pytest.raises(DataError, match=r"7 problem\(s\) in the raw data, nothing was written"):
        run(recipe(raw, tmp_path / "out"), inline=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("change", "message"), [
    ({"images": "*/pictures/*.png"}, "data.custom.images: .* fits no file below"),
    ({"images": "*/img/part?.png", "masks": "*/img/part*"}, "pair|label|wildcards|several"),
    ({"split": {"scenes": {"train": ["aa"], "val": ["c"], "test": ["d"]}}}, "'aa' of train fits nothing"),
    ({"classes": [CLASSES[0], {"name": "w", "color": BLUE, "codes": [3]}]}, "ids .3. and colours .* are mixed"),
    ({"ignored": [RED]}, r"code \(255, 0, 0\) has two meanings"),
    ({"bands": ["red"]}, r"3 band\(s\), expected 1"),
])  # fmt: skip
def test_impossible_descriptions_are_refused(tmp_path, change, message):
    build(tmp_path / "raw")
    with pytest.raises((ConfigError, DataError), match=message):
        run(recipe(tmp_path / "raw", tmp_path / "out", **change), inline=True)


def test_bands_and_16_bit_are_stated_in_the_card(tmp_path):
    for name in ("a", "b", "c"):
        image = texture(ord(name), 70, 90, 5, "uint16")
        save(tmp_path / "raw" / name / "img" / "x.tif", image)
        save(tmp_path / "raw" / name / "lab" / "x_label.tif", blocks(1, 70, 90, (RED, BLUE)))
    values = {"bands": ["b4", "b1"], "max_value": 10000, "ground_sampling_distance": 10, "license": "CC0"}
    split = {"scenes": {"train": ["a"], "val": ["b"], "test": ["c"]}}
    bands = ["b1", "b2", "b3", "b4", "b5"]
    files = {"images": "*/img/*.tif", "masks": "*/lab/*_label.tif", "bands": bands, "ignored": []}
    tiling = {"tiling": {"default": {"size": 64, "stride": 32, "padding": "mirror"}}}
    card = run(
        recipe(tmp_path / "raw", tmp_path / "out", split, data={**values, **tiling}, **files), inline=True
    )
    image = texture(ord("a"), 70, 90, 5, "uint16")[..., [3, 0]] / 10000
    assert (card.bands, card.dtype, card.max_value, card.license) == (("b4", "b1"), "uint16", 10000, "CC0")
    assert card.ground_sampling_distance == 10
    assert card.splits["val"].ignored_pixels > 0
    assert sum(card.splits["val"].class_pixels) == 70 * 90
    assert sum(card.splits["train"].class_pixels) > 70 * 90
    np.testing.assert_allclose(card.mean, image.mean((0, 1)), rtol=0.05)
    assert card.tiling["val"]["once"] is True
    with pytest.raises(ConfigError, match=r"data.bands: no band 'b9'. (Did you mean b|Allowed: b1)"):
        run(recipe(tmp_path / "raw", tmp_path / "o", split, data={"bands": ["b9"]}, **files), inline=True)

"""Rows about label images, and about the files of a data set."""

import os
import shutil
import unicodedata

import numpy as np
import pytest
import rasterio
from PIL import Image

from d2ls.errors import DataError, LabelError, StorageError
from pipeline.prediction.inputs import list_jobs
from pipeline.sharding.run import check_raw_data, ensure_shards, shard_spec
from sharding.make import make_shards
from sharding.tasks import run_here
from tests.geodata import case
from tests.geodata.tiffs import ids, pixels, tif
from tests.geodata.world import pair, problems, recipe, samples, shard


def refused(root, *words, **custom):
    """Asserts that the check names every one of the words and that sharding writes nothing."""
    text = problems(root, **custom)
    for word in words:
        assert word in text, text
    assert not (root / "shards").exists()


def stored(root, **custom):
    """Class ids of the scene `a` after sharding."""
    shard(root, **custom)
    return samples(root)["train_a"][1]


def placed(mask, value, *places):
    """A copy of a mask with a value at some places (row, column)."""
    mask = mask.copy()
    for place in places:
        mask[..., place[0], place[1]] = value
    return mask


def png(root, mask, mode=None):
    """Writes an image and a label PNG of it."""
    tif(root / "images" / "a.tif", pixels())
    (root / "labels").mkdir()
    Image.fromarray(mask, mode).save(root / "labels" / "a.png")


@case(
    "float label image with 0.4, 1.4, 2.4",
    "refused; names value, count, row and column",
)
def _(tmp_path):
    pair(tmp_path, mask=ids().astype(np.float32) + np.float32(0.4))
    refused(
        tmp_path,
        "labels/a.tif: label ids are whole numbers, this image of float32 holds 0.4",
        "first at row 0",
    )
    with pytest.raises(LabelError, match="whole numbers"):
        shard(tmp_path)


@case("float label image of whole numbers", "taken")
def _(tmp_path):
    pair(tmp_path, mask=ids().astype(np.float64))
    np.testing.assert_array_equal(stored(tmp_path), ids())


@case("float label image with NaN", "refused, NaN named; `ignored: [nan]` takes NaN as ignored")
def _(tmp_path):
    mask = placed(ids().astype(np.float32), np.nan, (3, 4), (5, 6))
    pair(tmp_path, mask=mask)
    refused(tmp_path, "nan in 2 pixels, first at row 3 column 4", "data.custom.ignored: [nan, ...]")
    expected = placed(ids(), 255, (3, 4), (5, 6))
    for spelled in ("nan", "NaN", float("nan")):
        np.testing.assert_array_equal(stored(tmp_path, ignored=[spelled]), expected)


@case(
    "int16 label image with -1 or -9999", "refused, value named; `ignored: [-1, -9999]` takes them as ignored"
)
def _(tmp_path):
    mask = placed(placed(ids().astype(np.int16), -1, (3, 4)), -9999, (5, 6))
    pair(tmp_path, mask=mask)
    refused(
        tmp_path,
        "unknown label id -9999 in 1 pixels, first at row 5 column 6; -1 in 1",
        "data.custom.ignored",
    )
    np.testing.assert_array_equal(stored(tmp_path, ignored=[-1, -9999]), placed(ids(), 255, (3, 4), (5, 6)))


@case("palette TIFF of 8 or 16 bit", "read: the indices as ids, or the colours as colours")
def _(tmp_path):
    colors = {0: (255, 0, 0), 1: (0, 255, 0), 2: (0, 0, 255)}
    for dtype in ("uint8", "uint16"):
        pair(tmp_path)
        tif(tmp_path / "labels" / "a.tif", ids().astype(dtype), photometric="palette",
            after=lambda file: file.write_colormap(1, colors))  # fmt: skip
        np.testing.assert_array_equal(stored(tmp_path), ids())
        classes = [{"name": str(color), "color": color} for color in colors.values()]
        np.testing.assert_array_equal(stored(tmp_path, classes=classes, ignored=[]), ids())


@case(
    "label image with an alpha channel that is opaque (LA, RGBA, or a second or fourth band)",
    "read without it",
)
def _(tmp_path):
    opaque = np.full_like(ids(), 255)
    png(tmp_path, np.stack([ids(), opaque], axis=-1), "LA")
    np.testing.assert_array_equal(stored(tmp_path, masks="labels/*.png"), ids())
    tif(tmp_path / "labels" / "a.tif", np.stack([ids(), opaque]))
    np.testing.assert_array_equal(stored(tmp_path), ids())
    tif(tmp_path / "labels" / "a.tif", np.stack([ids(), ids(), ids(), opaque]))
    np.testing.assert_array_equal(stored(tmp_path), ids())


@case(
    "label image with transparent pixels",
    "refused, count and place named; `ignored: [transparent]` takes an alpha of 0 as ignored, one between is refused",
)
def _(tmp_path):
    alpha = placed(np.full_like(ids(), 255), 0, (3, 4), (5, 6))
    red = [{"name": "red", "color": (200, 0, 0)}, {"name": "green", "color": (0, 200, 0)}]
    rgba = np.zeros((*ids().shape, 4), np.uint8)
    rgba[..., 0], rgba[..., 1], rgba[..., 3] = 200 * (ids() > 0), 200 * (ids() == 0), alpha
    png(tmp_path, rgba, "RGBA")
    own = {"masks": "labels/*.png", "classes": red}
    refused(
        tmp_path, "alpha is 0 in 2 pixels, first at row 3 column 4", "[transparent, ...]", ignored=[], **own
    )
    expected = placed((ids() == 0).astype(np.uint8), 255, (3, 4), (5, 6))
    np.testing.assert_array_equal(stored(tmp_path, ignored=["transparent"], **own), expected)
    tif(tmp_path / "labels" / "a.tif", np.stack([ids(), placed(alpha, 128, (7, 8))]))
    refused_text = "alpha is 128 in 1 pixels, first at row 7 column 8 (opaque: 255)"
    assert refused_text in problems(tmp_path, ignored=["transparent"])


@case("mask in the file of a label image", "as transparent pixels")
def _(tmp_path):
    hidden = np.zeros(ids().shape, bool)
    hidden[:, :50] = True
    pair(tmp_path)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        mask = np.where(hidden, 0, 255).astype(np.uint8)
        tif(tmp_path / "labels" / "a.tif", ids(), after=lambda file: file.write_mask(mask))
    refused(tmp_path, "alpha is 0 in 6400 pixels, first at row 0 column 0", "[transparent, ...]")
    expected = np.where(hidden, 255, ids())
    np.testing.assert_array_equal(stored(tmp_path, ignored=["transparent"]), expected)


@case(
    "ids written as three equal bands (R=G=B)",
    "read as ids; bands that differ are refused, value and place named",
)
def _(tmp_path):
    three = np.stack([ids()] * 3)
    pair(tmp_path, mask=three)
    np.testing.assert_array_equal(stored(tmp_path), ids())
    three[2, 5, 6] = 99
    tif(tmp_path / "labels" / "a.tif", three)
    value = tuple(three[:, 5, 6].tolist())
    text = problems(tmp_path)
    assert f"The bands differ: {value} at row 5 column 6" in text
    assert "`label_values: [[red, green, blue]]` in data.custom.classes" in text


@case(
    "colours declared, but the label image has one band of ids",
    "refused; names `label_values` in `data.custom.classes`",
)
def _(tmp_path):
    pair(tmp_path)
    classes = [{"name": "red", "color": (255, 0, 0)}]
    refused(tmp_path, "label colours need 8-bit RGB or a palette, this file has 1 x uint8",
            "`label_values` in data.custom", classes=classes, ignored=[])  # fmt: skip


TWO = [
    {"name": "ground", "color": (0, 0, 0), "label_values": [0]},
    {"name": "house", "color": (255, 0, 0), "label_values": [1]},
]


@case(
    "masks of 0 and 255 with `ignored: [255]`: no pixel of the second class",
    "refused; names the class and `label_values`",
)
def _(tmp_path):
    pair(tmp_path, mask=np.where(ids() == 1, 255, 0).astype(np.uint8))
    words = (
        "class 'house' has no pixel in the training split 'train'",
        "of its pixels are ignored",
        "`label_values`",
    )
    refused(tmp_path, *words, classes=TWO)
    with pytest.raises(DataError, match="class 'house' has no pixel"):
        shard(tmp_path, classes=TWO)
    assert not (tmp_path / "shards").exists()


@case(
    "a class that is only in other splits than `train`",
    "refused, unless it is `scored: false`; then a warning",
)
def _(tmp_path):
    pair(tmp_path, "a", mask=np.minimum(ids(), 1))
    pair(tmp_path, "b")
    split = {"scenes": {"train": ["images/a"], "val": ["images/b"]}}
    refused(tmp_path, "class 'c' has no pixel in the training split 'train'", split=split)
    classes = recipe(tmp_path).to_dict()["data"]["custom"]["classes"]
    classes[2]["scored"] = False
    shard(tmp_path, split=split, classes=classes)
    result = check_raw_data(recipe(tmp_path, split=split, classes=classes), no_ray=True).scan
    assert (result.problems, len(result.warnings)) == ((), 2)
    assert "roles.test names the split 'test'" in result.warnings[0]
    assert "class 'c' has no pixel" in result.warnings[1]


@case("every label pixel of a split is ignored", "refused; names the split and `data.custom.ignored`")
def _(tmp_path):
    pair(tmp_path, "a")
    pair(tmp_path, "b", mask=np.full_like(ids(), 255))
    split = {"scenes": {"train": ["images/a"], "val": ["images/b"]}}
    refused(tmp_path, "split 'val': every pixel is ignored", "data.custom.ignored", split=split)
    with pytest.raises(DataError, match="split 'val': every pixel is ignored"):
        shard(tmp_path, split=split)
    assert not (tmp_path / "shards").exists()


@case(
    "more than half of the pixels of a split are ignored, or there is one class only",
    "taken; `--check` warns",
)
def _(tmp_path):
    mask = ids()
    mask[:100] = 255
    pair(tmp_path, mask=mask)
    result = check_raw_data(recipe(tmp_path), no_ray=True).scan
    assert result.problems == ()
    assert any(
        "split 'train': 78% of the pixels are ignored, more than 50%" in text for text in result.warnings
    )
    result = check_raw_data(recipe(tmp_path, classes=TWO[:1], ignored=[1, 2, 255]), no_ray=True).scan
    assert any("the only class is 'ground'" in text for text in result.warnings)


@case("two classes of one display colour", "refused; names both")
def _(tmp_path):
    pair(tmp_path)
    classes = [{**TWO[0], "color": (9, 9, 9)}, {**TWO[1], "color": (9, 9, 9)}]
    refused(tmp_path, "data.custom.classes: 'ground' and 'house' have one color (9, 9, 9)", classes=classes)


@case("`roles.train` or `roles.val` names a split that is not there", "refused; of `roles.test` a warning")
def _(tmp_path):
    pair(tmp_path)
    refused(tmp_path, "roles.val names the split 'val', which does not exist. Name scenes for it in "
            "data.custom.split", split={"fractions": {"train": 1.0}})  # fmt: skip


@case(
    "`scene` is no regular expression, or one without a group in parentheses",
    "refused; names `data.custom.scene`",
)
def _(tmp_path):
    pair(tmp_path)
    refused(tmp_path, "data.custom.scene: s\\d has no group in parentheses", scene=r"s\d")
    refused(tmp_path, "data.custom.scene: (s\\d is not a regular expression", scene=r"(s\d")


@case("a symbolic link that leads to itself, to nothing or to a folder above it", "refused; names the link")
def _(tmp_path):
    pair(tmp_path)
    (tmp_path / "images" / "self.tif").symlink_to("self.tif")
    refused(tmp_path, "images/self.tif: this link leads to itself or to nothing")


@case("suffixes of another case: `a.tif` beside `b.TIF`", "taken")
def _(tmp_path):
    pair(tmp_path, "a")
    pair(tmp_path, "b")
    for folder in ("images", "labels"):
        (tmp_path / folder / "b.tif").rename(tmp_path / folder / "b.TIF")
    assert shard(tmp_path).splits["train"].samples == 2


@case("names in two Unicode forms (NFC for the image, NFD for its label image)", "paired")
def _(tmp_path):
    name = "caf\u00e9"
    tif(tmp_path / "images" / f"{name}.tif", ids()[None].repeat(3, axis=0))
    tif(tmp_path / "labels" / f"{unicodedata.normalize('NFD', name)}.tif", ids())
    assert shard(tmp_path).splits["train"].samples == 1


@case(
    "images without a label image",
    "refused one by one, unless named in `data.custom.unused`; then counted in the table of `--check`",
)
def _(tmp_path):
    pair(tmp_path)
    (tmp_path / "images" / "test").mkdir()
    shutil.copy(tmp_path / "images" / "a.tif", tmp_path / "images" / "test" / "b.tif")
    files = {"images": "images/**/*.tif"}
    refused(tmp_path, "test/b.tif: no label image for it", "data.custom.unused", **files)
    assert shard(tmp_path, **files, unused="images/test/*").splits["train"].samples == 1


@case("images of several formats: `images/*.{tif,png}`, or a list of globs", "taken")
def _(tmp_path):
    pair(tmp_path, "a")
    pair(tmp_path, "b")
    (tmp_path / "images" / "b.tif").rename(tmp_path / "images" / "b.tiff")
    assert shard(tmp_path, images="images/*.{tif,tiff}").splits["train"].samples == 2
    assert shard(tmp_path, images=["images/*.tif", "images/*.tiff"]).splits["train"].samples == 2


@case(
    "`train.txt` and `val.txt` as data sets ship them",
    "read by `split.lists`; an image in none is left out and counted; a line that fits no image is refused",
)
def _(tmp_path):
    for name in "abc":
        pair(tmp_path, name)
    (tmp_path / "train.txt").write_text("a\nimages/b.tif\n")
    (tmp_path / "val.txt").write_text("c.tif\n")
    split = {"lists": {"train": "train.txt", "val": "val.txt"}}
    card = shard(tmp_path, split=split)
    assert {name: part.samples for name, part in card.splits.items()} == {"train": 2, "val": 1}
    shutil.rmtree(tmp_path / "shards")
    (tmp_path / "train.txt").write_text("a\nx\n")
    refused(
        tmp_path,
        "train.txt: 1 of 2 lines",
        "line 2 ('x') fits no image",
        "data.custom.split.lists",
        split=split,
    )


@case("`split.fractions: {test: 1.0}`, everything in one split", "taken")
def _(tmp_path):
    pair(tmp_path)
    assert list(shard(tmp_path, split={"fractions": {"test": 1.0}}).splits) == ["test"]


@case(
    "scenes whose names differ in letters beyond ASCII only", "both taken; other names of one key are refused"
)
def _(tmp_path):
    for name in ("\u5317\u4eac", "\u4e0a\u6d77"):
        pair(tmp_path, name)
    assert shard(tmp_path).splits["train"].samples == 2
    for name in ("a b", "a_b"):
        pair(tmp_path, name)
    with pytest.raises(DataError, match=r"images/a.b\.tif and .*images/a.b\.tif differ only in"):
        shard(tmp_path)


@case(
    "`shards.uri` holds files of the user, or the shards of another data set", "refused; nothing is touched"
)
def _(tmp_path):
    pair(tmp_path)
    for file in ("train/train-00000.tar", "train/train-00007.tar", "card.json", "manifests/x.parquet"):
        mine = tmp_path / "shards" / file
        mine.parent.mkdir(parents=True, exist_ok=True)
        mine.write_text("mine")
        with pytest.raises(StorageError, match=f"{file}: exists and was not made by this program"):
            shard(tmp_path)
        assert [path.read_text() for path in (tmp_path / "shards").rglob("*") if path.is_file()] == ["mine"]
        shutil.rmtree(tmp_path / "shards")
    shard(tmp_path)
    card = (tmp_path / "shards" / "card.json").read_text()
    other = recipe(tmp_path, data={"tiling": {"default": {"size": 64}}}).model_copy(update={"name": "other"})
    with pytest.raises(StorageError, match="holds the shards of 'geo', not of 'other'"):
        ensure_shards(other, no_ray=True)
    assert (tmp_path / "shards" / "card.json").read_text() == card
    pair(tmp_path, mask=ids(1))
    assert shard(tmp_path).to_json() != card


@case(
    "a file name that is not UTF-8 (unpacked from an old archive)",
    "refused; `shard` and `predict` show its bytes",
)
def _(tmp_path):
    pair(tmp_path)
    name = os.fsencode(tmp_path) + b"/images/M\xfcnchen.tif"
    (tmp_path / "images" / "a.tif").rename(os.fsdecode(name))
    refused(tmp_path, r"images/M\udcfcnchen.tif: this name is not UTF-8")
    for source in (str(tmp_path / "images"), os.fsdecode(name)):
        with pytest.raises(DataError, match="this name is not UTF-8"):
            list_jobs(source, str(tmp_path / "maps"))


@case("an image or label image that is replaced while the set is made", "refused when it is read")
def _(tmp_path):
    def replaced(file, array):
        def run(function, tasks, *arguments):
            tif(tmp_path / file / "a.tif", array)
            return run_here(function, tasks, *arguments)

        return run

    for file, array in (("images", pixels(1, 100, 150)), ("labels", ids(1, 100, 150))):
        pair(tmp_path)
        with pytest.raises(DataError, match=f"{file}/a.tif: changed while the data set was sharded"):
            make_shards(shard_spec(recipe(tmp_path)), replaced(file, array))
    pair(tmp_path)
    assert shard(tmp_path).splits["train"].samples == 1

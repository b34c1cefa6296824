"""Rows about label images, and about which files belong to a data set."""

import shutil
import unicodedata

from tests.geodata import case
from tests.geodata.world import ids, pair, problems, shard, tif


def refused(root, *words, **custom):
    """Asserts that the check names every one of the words and that sharding writes nothing."""
    text = problems(root, **custom)
    for word in words:
        assert word in text, text
    assert not (root / "shards").exists()


@case(
    "`scene` is no regular expression, or one without a group in parentheses",
    "refused; names `data.custom.scene`",
)
def _(tmp_path):
    pair(tmp_path)
    refused(tmp_path, "data.custom.scene: 's\\\\d' has no group in parentheses", scene=r"s\d")
    refused(tmp_path, "data.custom.scene: '(s\\\\d' is not a regular expression", scene=r"(s\d")


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
    split = {"lists": {"train": "train.txt"}}
    assert shard(tmp_path, split=split).splits["train"].samples == 2
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

"""LoveDA, UAVid and Cloud with the true names of their downloads, in zip archives, with 64 x 64 pixels."""

import io
import zipfile
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from sharding.scan import scan
from sharding.spec import ShardSpec
from sharding.validate import validate
from tests.trees import LOVEDA_RAW, UAVID_COLORS, blocks, texture


def png(pixels, mode=None):
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(stream, "PNG")
    return stream.getvalue()


def pack(archive, images, labels, codes, mode=None):
    """Writes a zip; images without a label image have None."""
    with zipfile.ZipFile(archive, "a") as target:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            target.writestr(image, png(texture(number, 64, 64)))
            if label:
                target.writestr(label, png(blocks(number, 64, 64, codes), mode))


def loveda(root):
    for part, numbers in {"Train": (0, 2521), "Val": (2522, 4190), "Test": (4191, 5986)}.items():
        images = [
            f"{part}/{area}/images_png/{n}.png" for area, n in zip(("Rural", "Urban"), numbers, strict=True)
        ]
        labels = [None if part == "Test" else image.replace("images", "masks") for image in images]
        pack(root / f"{part}.zip", images, labels, LOVEDA_RAW)


def uavid(root):
    top = "uavid_v1.5_official_release_image"
    for part, sequence in {"train": 35, "val": 37, "test": 42}.items():
        images = [f"{top}/uavid_{part}/seq{sequence}/Images/{frame}.png" for frame in ("000000", "000900")]
        labels = [None if part == "test" else image.replace("Images", "Labels") for image in images]
        pack(root / f"{top}.zip", images, labels, UAVID_COLORS, "RGBA")


def cloud(root):
    names = {
        "train": ("barren_LC81390292014135LGN00_patch_5632_512", "grass_LC81020802014100LGN00_patch_0_0"),
        "val": ("wetlands_LC81750732014035LGN00_patch_6144_1536",),
        "test": ("forest_LC80160502014041LGN00_patch_4608_4608",),
    }
    for part, patches in names.items():
        images = [f"l8_biome/img_dir/{part}/{patch}.png" for patch in patches]
        labels = [image.replace("img_dir", "ann_dir") for image in images]
        pack(root / "l8_biome.zip", images, labels, range(4))


@pytest.mark.parametrize(
    ("build", "scenes", "check"),
    [
        (loveda, {"train": 2, "val": 2}, "unknown"),
        (uavid, {"train": 2, "val": 2}, "disjoint"),
        (cloud, {"train": 2, "val": 1, "test": 1}, "disjoint"),
    ],
)
def test_downloads_are_read_in_place(build, scenes, check, tmp_path):
    build(tmp_path)
    result = validate(scan(ShardSpec("t", "out", build.__name__, str(tmp_path), check_archives=False)))
    assert result.scan.problems == ()
    assert Counter(item.scene.split for item in result.scan.scenes) == scenes
    assert result.scan.scene_check == check
    assert all(np.all(counts.classes) for counts in result.counts.values())

"""Tiny data sets on disk with the true folder and file names of each source."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import rasterio
import rasterio.errors
from PIL import Image

LOVEDA_RAW = (0, 1, 2, 3, 4, 5, 6, 7)
UAVID_COLORS = (
    (128, 0, 0), (128, 64, 128), (0, 128, 0), (128, 128, 0), (64, 0, 128), (192, 0, 192), (64, 64, 0), (0, 0, 0),
)  # fmt: skip
ISPRS_COLORS = (
    (255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0), (0, 0, 0),
)  # fmt: skip


def texture(number, height, width, bands=3, dtype="uint8"):
    """An image (H W C) that differs from number to number."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (5, 5, bands)).astype(np.float32)
    smooth = cv2.resize(coarse, (width, height)).reshape(height, width, bands)
    image = np.clip(smooth + rng.normal(0, 9, smooth.shape), 0, 255)
    return (image * (1 if dtype == "uint8" else 199)).astype(dtype)


def blocks(number, height, width, codes):
    """A label image in which every code occurs: ids (H W) or colours (H W 3)."""
    rng = np.random.default_rng(1000 + number)
    cells = rng.permutation(np.arange(36) % len(codes)).reshape(6, 6).astype(np.uint8)
    picked = cv2.resize(cells, (width, height), interpolation=cv2.INTER_NEAREST)
    return np.array(codes, np.uint8)[picked]


def save(path, pixels, palette=None, **profile):
    """Writes an image by suffix; with a palette a palette PNG of ids."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        bands = pixels[..., None] if pixels.ndim == 2 else pixels
        shape = {"height": bands.shape[0], "width": bands.shape[1], "count": bands.shape[2]}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(path, "w", driver="GTiff", dtype=bands.dtype, **shape, **profile) as file:
                file.write(bands.transpose(2, 0, 1))
        return
    if palette is not None:
        image = Image.fromarray(pixels, "P")
        image.putpalette([part for color in palette for part in color])
        image.save(path)
        return
    order = pixels[..., ::-1] if pixels.ndim == 3 else pixels
    assert cv2.imwrite(str(path), np.ascontiguousarray(order))


@dataclass(frozen=True)
class Tree:
    """A fake data set and the expected result of its reader.

    `splits` counts scenes by split under the protocol `clean`; `mask` is a label image of `train` and `raw` its pixels;
    `stray` is an unknown label that fits its kind.
    """

    source: str
    build: Callable[[Path], None]
    splits: dict[str, int]
    mask: str
    codes: tuple
    ids: tuple
    stray: object
    scene_check: str
    overrides: tuple[str, ...] = ()
    palette: tuple | None = None
    size: tuple[int, int] = (48, 64)
    hidden: dict[str, int] = field(default_factory=dict)


def _loveda(root):
    number = 0
    for part, counts in {"Train": (3, 2), "Val": (1, 1), "Test": (1, 1)}.items():
        for area, count in zip(("Urban", "Rural"), counts, strict=True):
            for _ in range(count):
                folder = root / part / area
                save(folder / "images_png" / f"{number}.png", texture(number, 64, 64))
                if part != "Test":
                    save(folder / "masks_png" / f"{number}.png", blocks(number, 64, 64, LOVEDA_RAW))
                number += 1


def _uavid(root):
    for part, sequence in (("train", 1), ("train", 31), ("val", 16), ("test", 21)):
        for frame in (0, 100):
            folder = root / f"uavid_{part}" / f"seq{sequence}"
            number = sequence * 10 + frame
            save(folder / "Images" / f"{frame:06d}.png", texture(number, 48, 64))
            if part != "test":
                save(folder / "Labels" / f"{frame:06d}.png", blocks(number, 48, 64, UAVID_COLORS))


def _potsdam(root):
    for number, tile in enumerate(("2_10", "3_10", "7_10", "2_12", "2_13", "7_13")):
        raw = blocks(number, 48, 64, ISPRS_COLORS)
        for folder, ending, bands in (("2_Ortho_RGB", "RGB", 3), ("4_Ortho_RGBIR", "RGBIR", 4)):
            path = root / folder / f"top_potsdam_{tile}_{ending}.tif"
            save(
                path,
                texture(number, 48, 64, bands),
                crs="EPSG:32633",
                transform=rasterio.Affine(0.05, 0, 366976, 0, -0.05, 5808000),
            )
        save(root / "5_Labels_all" / f"top_potsdam_{tile}_label.tif", raw)
        eroded = raw.copy()
        eroded[::8] = 0
        save(root / "5_Labels_all_noBoundary" / f"top_potsdam_{tile}_label_noBoundary.tif", eroded)


def _vaihingen(root):
    for number, area in enumerate((1, 3, 11, 2, 4)):
        name = f"top_mosaic_09cm_area{area}"
        raw = blocks(number, 48, 64, ISPRS_COLORS)
        save(root / "top" / f"{name}.tif", texture(number, 48, 64))
        save(root / "gts_for_participants" / f"{name}.tif", raw)
        save(
            root / "eroded_COMPLETE" / f"{name}_noBoundary.tif",
            np.where(np.arange(48)[:, None, None] % 8, raw, 0).astype(np.uint8),
        )


def _cloud(root):
    for part, paths in {"train": ("041", "042"), "val": ("043",), "test": ("044",)}.items():
        for path in paths:
            for patch in range(2):
                name = f"LC8157{path}2014106LGN00_{patch}"
                number = int(path) * 10 + patch
                save(root / "img_dir" / part / f"{name}.png", texture(number, 64, 64))
                save(root / "ann_dir" / part / f"{name}.png", blocks(number, 64, 64, (0, 1, 2, 3)))


GRASS_PALETTE = ((185, 101, 71), (248, 202, 155), (211, 232, 158), (138, 191, 104), (92, 144, 77))


def _grass(root):
    for part, count in (("train", 5), ("val", 2)):
        for index in range(count):
            number = index + 100 * (part == "val")
            save(root / "img_dir" / part / f"{number}.tif", texture(number, 64, 64))
            save(root / "ann_dir" / part / f"{number}.png", blocks(number, 64, 64, range(5)), GRASS_PALETTE)


ISPRS_IDS = (0, 1, 2, 3, 4, 5, 255)

TREES = {
    tree.source: tree
    for tree in (
        Tree("loveda", _loveda, {"train": 5, "val": 2}, "Train/Urban/masks_png/0.png", LOVEDA_RAW,
             (255, 0, 1, 2, 3, 4, 5, 6), 9, "unknown", size=(64, 64), hidden={"test": 2},
             overrides=("data.options.select=null",)),
        Tree("uavid", _uavid, {"train": 4, "val": 2}, "uavid_train/seq1/Labels/000000.png", UAVID_COLORS,
             tuple(range(8)), (1, 2, 3), "disjoint", hidden={"test": 2}, overrides=("data.options.select=null",)),
        Tree("potsdam", _potsdam, {"train": 2, "val": 1, "test": 2}, "5_Labels_all/top_potsdam_2_10_label.tif",
             ISPRS_COLORS, ISPRS_IDS, (1, 2, 3), "disjoint"),
        Tree("vaihingen", _vaihingen, {"train": 2, "val": 1, "test": 2},
             "gts_for_participants/top_mosaic_09cm_area1.tif", ISPRS_COLORS, ISPRS_IDS, (1, 2, 3), "disjoint"),
        Tree("cloud", _cloud, {"train": 4, "val": 2, "test": 2}, "ann_dir/train/LC81570412014106LGN00_0.png",
             (0, 1, 2, 3), (0, 1, 2, 3), 7, "disjoint", size=(64, 64)),
        Tree("grass", _grass, {"train": 4, "val": 1, "test": 2}, "ann_dir/train/0.png", tuple(range(5)),
             tuple(range(5)), 5, "unknown", palette=(*GRASS_PALETTE, (1, 1, 1)), size=(64, 64)),
    )
}  # fmt: skip
"""A tree for each benchmark, by source."""

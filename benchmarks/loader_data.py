"""Data of the loader benchmark: 1024x1024 pictures pieced together from real labelled images, in several formats.

    python benchmarks/loader_data.py SOURCE TARGET [--count 96]

SOURCE holds `Tile N/images/*.jpg` and `Tile N/masks/*.png` (the MBRSC layout). TARGET gets `folder/` (PNG images and
masks) and one shard set a codec: `png`, `webp`, `tif`, `tif-zstd`, encoded as `sharding` encodes them.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from d2ls.labels import ClassTable
from d2ls.shards.png import grey_png
from sharding.codecs import Codec
from tests import shards as maker

SIDE, A_SHARD = 1024, 24
COLORS = {"building": 0x3C1098, "land": 0x8429F6, "road": 0x6EC1E4, "vegetation": 0xFEDD3A, "water": 0xE2A929}
CODECS = {
    "png": Codec("png"),
    "webp": Codec("webp"),
    "tif": Codec("tif", compression="none"),
    "tif-zstd": Codec("tif", compression="zstd"),
}


def classes():
    colors = [((code >> 16) & 255, (code >> 8) & 255, code & 255) for code in COLORS.values()]
    return ClassTable.create(list(COLORS), colors)


def read_pairs(source):
    pairs = []
    for path in sorted(source.glob("Tile */images/*.jpg")):
        image = cv2.imread(str(path))[:, :, ::-1]
        colors = cv2.imread(str(path.parents[1] / "masks" / f"{path.stem}.png"))[:, :, ::-1].astype(np.int64)
        packed = (colors[..., 0] << 16) | (colors[..., 1] << 8) | colors[..., 2]
        mask = np.full(packed.shape, 255, np.uint8)
        for index, code in enumerate(COLORS.values()):
            mask[packed == code] = index
        pairs.append((image, mask))
    return pairs


def canvas(pairs, rng):
    """Fills the square with windows of the images, left to right and top to bottom."""
    image, mask = np.zeros((SIDE, SIDE, 3), np.uint8), np.full((SIDE, SIDE), 255, np.uint8)
    top = 0
    while top < SIDE:
        left, height = 0, SIDE
        while left < SIDE:
            source, labels = pairs[rng.integers(len(pairs))]
            h, w = (
                min(have, want) for have, want in zip(labels.shape, (SIDE - top, SIDE - left), strict=True)
            )
            y, x = rng.integers(labels.shape[0] - h + 1), rng.integers(labels.shape[1] - w + 1)
            image[top : top + h, left : left + w] = source[y : y + h, x : x + w]
            mask[top : top + h, left : left + w] = labels[y : y + h, x : x + w]
            left, height = left + w, min(height, h)
        top += height
    return image, mask


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--count", type=int, default=96)
    options = parser.parse_args()
    pairs, rng = read_pairs(options.source), np.random.default_rng(0)
    pictures = [canvas(pairs, rng) for _ in range(options.count)]
    folder = options.target / "folder"
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number, (image, mask) in enumerate(pictures):
        cv2.imwrite(str(folder / "images" / f"{number:06d}.png"), image[:, :, ::-1])
        cv2.imwrite(str(folder / "masks" / f"{number:06d}.png"), mask)
    counts = [A_SHARD] * (options.count // A_SHARD)
    for name, codec in CODECS.items():
        supply = iter(pictures)
        maker.encode = lambda image, suffix, codec=codec, **_: (
            codec.encode(image) if image.shape[2] == 3 else grey_png(image[..., 0])
        )
        maker.make_shards(
            options.target / name,
            counts,
            size=(SIDE, SIDE),
            suffix=codec.name,
            sample=lambda *_, supply=supply: next(supply),
            classes=classes(),
        )
        size = sum(path.stat().st_size for path in (options.target / name).rglob("*.tar"))
        print(f"{name}: {options.count} samples, {size / options.count / 1e6:.2f} MB a sample")


if __name__ == "__main__":
    main()

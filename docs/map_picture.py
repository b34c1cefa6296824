"""Makes a picture of samples side by side: image, labels, and the map of a model.

The README's picture, after its training on MBRSC:

    python docs/map_picture.py models:/d2ls-mbrsc@champion data/shards/mbrsc docs/pictures/mbrsc_map.jpg --shrink 2 \
        test_Tile_8_image_part_002_r00000_c00512 test_Tile_8_image_part_005_r00512_c00512 \
        test_Tile_8_image_part_006_r00512_c01024
"""

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

import pipeline
from d2ls.data import EvaluationLoader
from d2ls.shards import ShardSet

GAP = 6


def main() -> None:
    """Reads the samples, maps them, saves the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="what pipeline.load_model takes")
    parser.add_argument("shards", help="folder of the shards")
    parser.add_argument("target", type=Path, help="the PNG or JPEG file to write")
    parser.add_argument("keys", nargs="+", help="samples, a row each")
    parser.add_argument("--split", default="test", help="default: %(default)s")
    parser.add_argument("--shrink", type=int, default=1, help="make the picture so many times smaller")
    options = parser.parse_args()
    model, shards = pipeline.load_model(options.model), ShardSet.open(options.shards)
    rows = {}
    for batch in EvaluationLoader(shards, options.split, batch_size=1):
        if batch.keys[0] in options.keys:
            image, labels = batch.images[0].permute(1, 2, 0).numpy(), batch.labels[0].numpy()
            colors = [model.info.classes.colorize(ids) for ids in (labels, model.predict(image))]
            rows[batch.keys[0]] = joined([image, *colors], axis=1)
    if missing := set(options.keys) - set(rows):
        parser.error(f"{options.shards} has no sample {sorted(missing)[0]} in split {options.split}")
    picture = Image.fromarray(joined([rows[key] for key in options.keys], axis=0))
    picture.reduce(options.shrink).save(options.target, optimize=True)


def joined(parts: list[npt.NDArray[np.uint8]], axis: int) -> npt.NDArray[np.uint8]:
    """Joins pictures with a white gap."""
    shape = list(parts[0].shape)
    shape[axis] = GAP
    gap = np.full(shape, 255, np.uint8)
    return np.concatenate([piece for part in parts for piece in (part, gap)][:-1], axis=axis)


if __name__ == "__main__":
    main()

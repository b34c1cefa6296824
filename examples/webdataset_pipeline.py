"""Exact, resumable epochs of this project's shards under the stages of `webdataset.DataPipeline`.

    python -m pipeline.shard my.yaml
    python examples/webdataset_pipeline.py data/shards/my train --epoch 3 --start-step 10

`PlannedSource` replaces the shard list, splitters and tar reader of webdataset; all later stages are
webdataset's or your own. Each sample occurs once in an epoch, for any number of ranks and workers.
"""

import argparse

import numpy as np
import webdataset
from torch.utils.data import DataLoader

from d2ls.data.webdataset import PlannedSource
from d2ls.shards import ShardSet
from d2ls.shards.codecs import decode_image, decode_mask

CROP = 32


def decode(sample):
    """Turns the encoded members of a sample into arrays: image H W C, labels H W."""
    name = next(name for name in sample if name.startswith("image."))
    image = decode_image(sample[name], name.removeprefix("image."))
    return {
        "key": sample["__key__"],
        "seed": sample["__seed__"],
        "image": image,
        "mask": decode_mask(sample["mask.png"]),
    }


def crop(sample):
    """Cuts a random square; the sample's own seed makes it the same on any number of ranks and workers."""
    height, width = sample["mask"].shape
    random = sample["seed"].augment_generator()
    top, left = random.integers(height - CROP + 1), random.integers(width - CROP + 1)
    window = (slice(top, top + CROP), slice(left, left + CROP))
    return sample["key"], sample["image"][window], sample["mask"][window]


def collate(samples):
    """Makes a batch: keys, images B H W C, labels B H W."""
    keys, images, masks = zip(*samples, strict=True)
    return keys, np.stack(images), np.stack(masks)


def main(argv=None):
    """Prints the batches of this rank (here the only one) in one epoch."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards")
    parser.add_argument("split")
    parser.add_argument("--epoch", type=int, default=0)
    parser.add_argument("--start-step", type=int, default=0)
    parser.add_argument("--global-batch-size", type=int, default=4)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args(argv)
    source = PlannedSource(
        ShardSet.open(options.shards),
        options.split,
        global_batch_size=options.global_batch_size,
        seed=0,
        epoch=options.epoch,
        start_step=options.start_step,
    )
    pipeline = webdataset.DataPipeline(
        source,
        webdataset.map(decode),
        webdataset.map(crop),
        webdataset.batched(source.lanes, collation_fn=collate),
    )
    steps = enumerate(DataLoader(pipeline, batch_size=None, num_workers=options.workers), options.start_step)
    for step, (keys, images, masks) in steps:
        print(f"step {step}: images {tuple(images.shape)}, labels {tuple(masks.shape)}, {' '.join(keys)}")


if __name__ == "__main__":
    main()

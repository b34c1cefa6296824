"""The effect of window and lanes on shuffling and on bytes read, and the time to plan a million samples.

    python -m benchmarks.loader_plan

Simulated index: for `quality` 100 shards of 64 samples, 16 neighbouring samples per scene; for `million` 2000 shards of
500. Nothing is decoded.
"""

import tempfile
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from d2ls.data import Augmentation, TrainingLoader
from d2ls.data.sampler import epoch_plan, rank_lanes
from d2ls.labels import ClassTable
from d2ls.shards import CARD_FILE, INDEX_FILE, INDEX_SCHEMA, DatasetCard, ShardFile, ShardSet, SplitCard

SHARDS, A_SHARD, A_SCENE = 100, 64, 16


def quality(lanes, window, ranks=4):
    samples = SHARDS * A_SHARD
    shards, scenes = np.repeat(np.arange(SHARDS), A_SHARD), np.arange(samples) // A_SCENE
    rows = (
        epoch_plan([A_SHARD] * SHARDS, global_batch_size=lanes, seed=0, epoch=0, window=window)
        .schedule(range(lanes))
        .rows
    )
    follow = np.mean(scenes[rows[1:]] == scenes[rows[:-1]])
    spread = np.mean([np.ptp(np.nonzero((shards[rows] == shard).any(axis=1))[0]) for shard in range(SHARDS)])
    mine = shards[rows[:, list(rank_lanes(lanes, 0, ranks))]]
    room = mine.shape[1] * (window // A_SHARD + 2)
    return (
        follow,
        spread / len(rows),
        len(np.unique(mine)),
        room,
        fetches(mine, room),
        fetches(mine, mine.shape[1]),
    )


def fetches(table, room):
    """Counts the shards that a least-recently-used cache of a given size fetches."""
    cache, count = OrderedDict(), 0
    for shard in table.ravel().tolist():
        count += shard not in cache
        cache[shard] = cache.pop(shard, None)
        if len(cache) > room:
            cache.popitem(last=False)
    return count


def simulated(folder, count=1_000_000, a_shard=500):
    classes = ClassTable.create([str(k) for k in range(7)], [(k, k, k) for k in range(7)])
    names = [f"train/train-{number:06d}.tar" for number in range(count // a_shard)]
    texts = {
        "key": [f"sample{number:07d}" for number in range(count)],
        "split": ["train"] * count,
        "scene": [f"scene{number // A_SCENE}" for number in range(count)],
        "shard": np.repeat(names, a_shard).tolist(),
        "image_suffix": ["png"] * count,
        "class_pixels": np.random.default_rng(0).integers(0, 99999, (count, 7)).tolist(),
    }
    columns = [texts.get(field.name, np.arange(count) % 1024) for field in INDEX_SCHEMA]
    arrays = [pa.array(column).cast(field.type) for column, field in zip(columns, INDEX_SCHEMA, strict=True)]
    pq.write_table(pa.table(arrays, schema=INDEX_SCHEMA), folder / INDEX_FILE)
    shards = tuple(ShardFile(name, 10, "0" * 64, a_shard) for name in names)
    split = SplitCard(count, count // A_SCENE, (1,) * 7, 0, "0", shards)
    card = DatasetCard(
        name="million", source="custom", protocol="clean", classes=classes, bands=("r", "g", "b"), dtype="uint8",
        max_value=255.0, mean=(0.0,) * 3, std=(1.0,) * 3, ground_sampling_distance=None, tiling={}, codec={},
        scene_check="disjoint", splits={"train": split}, digest="0",
    )  # fmt: skip
    (folder / CARD_FILE).write_text(card.to_json())


def timed(name, function):
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    print(f"{name:52} {time.process_time() - cpu:6.2f} s CPU {time.perf_counter() - wall:6.2f} s wall")
    return result


def million():
    with tempfile.TemporaryDirectory() as folder:
        simulated(Path(folder))
        shards = timed("open the set (card and index)", lambda: ShardSet.open(folder))
    for weighting, world_size in ((0.0, 8), (0.5, 8), (0.0, 1)):
        name = f"class weighting {weighting}, {world_size} rank(s): "
        options = {"global_batch_size": 64, "augmentation": Augmentation(mosaic=0.25), "seed": 0}
        options |= {"world_size": world_size, "class_weighting": weighting}
        loader = timed(name + "loader", lambda options=options: TrainingLoader(shards, "train", **options))
        for epoch, step in ((1, 0), (2, loader.steps_per_epoch - 1)):
            timed(
                name + f"order of step {step}",
                lambda loader=loader, epoch=epoch, step=step: next(loader._specs(loader.epoch(epoch, step))),
            )


def main():
    print(
        "lanes window | successive samples of a lane from one scene | steps a shard is spread over, of the epoch"
    )
    print(
        "             | shards of rank 0 of 4 | fetched with room for window/shard + 2 a lane | with room for 1 a lane"
    )
    for lanes in (8, 32):
        for window in (1, 16, 64, 256, 1024):
            follow, spread, mine, room, fetched, tight = quality(lanes, window)
            print(
                f"{lanes:5} {window:6} | {follow:.3f} | {spread:.2f} | {mine} | {fetched} (room {room}) | {tight}"
            )
    million()


if __name__ == "__main__":
    main()

"""Ranks x workers x resume positions: one sample sequence; ranks x workers: one confusion matrix.

Ranks are real processes of a gloo group; the loader gets its rank as an argument and knows no group.
"""

import hashlib
import itertools

import numpy as np
import pytest
import torch
import torch.distributed as dist

from d2ls.data import Augmentation, EvaluationLoader, TrainingLoader
from d2ls.shards import ShardSet
from tests.shards import make_shards

AUGMENTATION = Augmentation(
    crop_size=32,
    scale=(0.75, 1.5),
    max_class_fraction=0.75,
    horizontal_flip=0.5,
    quarter_turns=0.5,
    brightness_contrast=0.5,
    mosaic=0.4,
)
RANKS, WORKERS, STARTS = (1, 2, 3), (0, 1, 2), (0, 1, 4)
GLOBAL_BATCH = 5


def fingerprints(batch):
    pairs = zip(batch.images, batch.labels, strict=True)
    return [
        hashlib.sha256(image.numpy().tobytes() + label.numpy().tobytes()).hexdigest()
        for image, label in pairs
    ]


def trained(shards, rank, world_size, workers):
    """Fingerprints of this rank's samples, for each start position."""
    actual = {}
    with TrainingLoader(
        shards,
        "train",
        global_batch_size=GLOBAL_BATCH,
        augmentation=AUGMENTATION,
        seed=2,
        rank=rank,
        world_size=world_size,
        workers=workers,
        shuffle_window=8,
        class_weighting=0.5,
    ) as loader:
        for start in STARTS:
            actual[start] = [fingerprints(batch) for batch in loader.epoch(1, start_step=start)]
    return actual


def evaluated(shards, rank, world_size, workers, group):
    """The confusion matrix of all ranks, against a stand-in prediction; one collective, after the loop."""
    matrix = torch.zeros(16, dtype=torch.int64)
    with EvaluationLoader(
        shards, "val", batch_size=4, rank=rank, world_size=world_size, workers=workers
    ) as loader:
        for batch in loader:
            counted = batch.labels != 255
            predicted = (batch.images[:, 0] // 64).long()
            matrix += torch.bincount(batch.labels[counted].long() * 4 + predicted[counted], minlength=16)
    dist.all_reduce(matrix, group=group)
    return matrix.tolist()


def run_rank(uri):
    """Runs this rank in each of the world sizes that have it."""
    rank = dist.get_rank()
    groups = {world_size: dist.new_group(range(world_size)) for world_size in RANKS}
    shards = ShardSet.open(uri)
    actual = {}
    for world_size, workers in itertools.product(RANKS, WORKERS):
        if rank < world_size:
            samples = trained(shards, rank, world_size, workers)
            actual[world_size, workers] = (
                samples,
                evaluated(shards, rank, world_size, workers, groups[world_size]),
            )
    return actual


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("matrix") / "set"
    make_shards(root, [4, 7, 3, 6])
    return make_shards(root, [5, 4], split="val", sizes=[(40, 56)] * 6 + [(48, 48)] * 3)


@pytest.fixture(scope="module")
def results(shards, ranks):
    """(world size, workers) to the ranks' results."""
    table = {}
    for rank, actual in enumerate(ranks.run(max(RANKS), run_rank, shards.uri)):
        for case, result in actual.items():
            table.setdefault(case, {})[rank] = result
    return table


def test_one_sample_sequence_for_all(results):
    sequences = {}
    for (world_size, workers), start in itertools.product(results, STARTS):
        ranks = [results[world_size, workers][rank][0][start] for rank in range(world_size)]
        steps = [list(itertools.chain(*parts)) for parts in zip(*ranks, strict=True)]
        sequences[world_size, workers, start] = steps
    whole = sequences[1, 0, 0]
    assert len(sequences) == 27
    assert {len(step) for step in whole} == {GLOBAL_BATCH}
    assert len(set(itertools.chain(*whole))) == len(whole) * GLOBAL_BATCH
    for (_, _, start), steps in sequences.items():
        assert steps == whole[start:]


def test_one_confusion_matrix_for_all(results, shards):
    matrices = [actual[1] for ranks in results.values() for actual in ranks.values()]
    assert all(matrix == matrices[0] for matrix in matrices)
    labelled = sum(sum(row["class_pixels"]) for row in shards.rows("val").to_pylist())
    assert np.sum(matrices[0]) == labelled

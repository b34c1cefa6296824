import itertools

import numpy as np
import pytest
import torch

from d2ls.data import Augmentation, TrainingLoader
from d2ls.errors import ConfigError
from tests.shards import make_shards, training_batches

FULL = Augmentation(
    crop_size=32,
    scale=(0.5, 1.5),
    max_class_fraction=0.75,
    horizontal_flip=0.5,
    vertical_flip=0.5,
    quarter_turns=0.5,
    brightness_contrast=0.5,
    sharpen=0.5,
    mosaic=0.4,
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards"), [5, 3, 6, 4, 4])


def stream(loader):
    """Yields the input of the network, sample by sample and step by step."""
    return [
        [(key, image.numpy().tobytes(), label.numpy().tobytes()) for key, image, label in samples]
        for samples in (zip(batch.keys, batch.images, batch.labels, strict=True) for batch in loader)
    ]


def joined(parts):
    """Puts the ranks' parts of each global batch side by side."""
    return [list(itertools.chain(*step)) for step in zip(*parts, strict=True)]


def batches(shards, **changes):
    arguments = {"global_batch_size": 4, "augmentation": FULL, "seed": 5, "epoch": 2, "shuffle_window": 8}
    return training_batches(shards, **{**arguments, **changes})


@pytest.fixture(scope="module")
def reference(shards):
    return stream(batches(shards))


def planned_keys(batches, step):
    """Keys of the global batch of a step, by the plan alone."""
    plan, index = batches.plan, batches.loader.index
    return tuple(index[int(plan.lane(lane).rows[step])].key for lane in range(plan.global_batch_size))


def test_batches_are_as_documented(shards):
    loader = batches(shards)
    assert len(loader) == loader.plan.steps == 6
    assert loader.plan.wrapped == 2
    seen = []
    for step, batch in enumerate(loader):
        assert batch.images.shape == (4, 3, 32, 32)
        assert batch.images.dtype == batch.labels.dtype == torch.uint8
        assert batch.labels.shape == (4, 32, 32)
        assert set(batch.labels.unique().tolist()) <= {0, 1, 2, 3, 255}
        assert batch.valid.tolist() == [True] * 4
        assert batch.keys == planned_keys(loader, step)
        assert batch.to("cpu").images.equal(batch.images)
        assert [int(scene[5:]) for scene in batch.scenes] == [shard_of(key) for key in batch.keys]
        seen += batch.keys
    assert len(set(seen)) == 22
    assert len(seen) == 24


def shard_of(key):
    return int(np.searchsorted(np.cumsum([5, 3, 6, 4, 4]), int(key[-6:]), side="right"))


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_any_number_of_ranks_sees_the_same_global_batches(shards, reference, world_size):
    parts = [stream(batches(shards, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert joined(parts) == reference


@pytest.mark.parametrize("start_step", [1, 5, 6])
def test_a_resumed_epoch_goes_on_at_the_next_sample(shards, reference, start_step):
    parts = [stream(batches(shards, rank=rank, world_size=2, start_step=start_step)) for rank in range(2)]
    assert joined(parts) == reference[start_step:]
    assert len(batches(shards, start_step=start_step)) == 6 - start_step


def test_workers_change_nothing_and_stay_for_many_epochs(shards, reference):
    arguments = {"global_batch_size": 4, "augmentation": FULL, "seed": 5, "shuffle_window": 8}
    with TrainingLoader(shards, "train", workers=2, **arguments) as loader:
        before = torch.random.get_rng_state()
        assert stream(loader.epoch(2)) == reference
        workers = [worker.pid for worker in loader._loader._iterator._workers]
        half = iter(loader.epoch(0))  # stopped in the middle
        next(half)
        assert stream(loader.epoch(2, start_step=3)) == reference[3:]
        assert stream(loader.epoch(3)) != reference
        assert [worker.pid for worker in loader._loader._iterator._workers] == workers
        assert torch.random.get_rng_state().equal(before)


def test_repeats_of_a_sample_are_augmented_anew(shards):
    result = {}
    for step in stream(batches(shards, class_weighting=1.0, global_batch_size=8)):
        for key, *pixels in step:
            result.setdefault(key, []).append(tuple(pixels))
    assert len(result) == 22
    repeated = [pixels for pixels in result.values() if len(pixels) > 1]
    assert repeated
    assert all(len(set(pixels)) == len(pixels) for pixels in repeated)


@pytest.mark.parametrize("weighting", [0.0, 1.0])
def test_a_part_of_the_samples_is_the_same_on_any_number_of_ranks(shards, weighting):
    options = {"fraction": 0.5, "class_weighting": weighting}
    whole = stream(batches(shards, **options))
    keys = {key for step in whole for key, *_ in step}
    assert len(keys) == 11
    assert keys > {key for step in stream(batches(shards, fraction=0.2)) for key, *_ in step}
    assert keys == {key for step in stream(batches(shards, epoch=7, **options)) for key, *_ in step}
    parts = [stream(batches(shards, rank=rank, world_size=3, start_step=1, **options)) for rank in range(3)]
    assert joined(parts) == whole[1:]


def test_more_slots_than_samples(shards, tmp_path):
    few = make_shards(tmp_path / "few", [3])
    loader = batches(few, global_batch_size=8)
    (batch,) = loader
    assert loader.plan.wrapped == 5
    assert len(batch.keys) == 8
    assert set(batch.keys) == {f"train_{number:06d}" for number in range(3)}
    assert len({image.numpy().tobytes() for image in batch.images}) == 8


def test_impossible_loaders_are_refused(shards):
    with pytest.raises(ConfigError, match="5 ranks"):
        batches(shards, rank=0, world_size=5)
    with pytest.raises(ConfigError, match="start step"):
        batches(shards, start_step=7)
    with pytest.raises(ConfigError, match="workers"):
        batches(shards, workers=-1)


CODECS = [
    ("webp", 3, "uint8"),
    ("jpg", 3, "uint8"),
    ("tif", 1, "uint8"),
    ("tif", 4, "uint8"),
    ("tif", 5, "uint16"),
    ("png", 1, "uint16"),
    ("png", 4, "uint8"),
]


@pytest.mark.parametrize(("suffix", "channels", "dtype"), CODECS)
def test_codecs_bands_and_depths(tmp_path, suffix, channels, dtype):
    shards = make_shards(tmp_path / "set", [4], suffix=suffix, channels=channels, dtype=dtype)
    for batch in batches(shards, global_batch_size=2):
        assert batch.images.shape == (2, channels, 32, 32)
        assert batch.images.dtype == (torch.uint8 if dtype == "uint8" else torch.float32)
        assert batch.images.min() >= 0
        assert batch.images.max() <= (255 if dtype == "uint8" else 65535)
        assert dtype == "uint8" or batch.images.max() > 255

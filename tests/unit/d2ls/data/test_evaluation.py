import numpy as np
import pytest

from d2ls.data import EvaluationLoader
from d2ls.errors import ConfigError
from tests.shards import make_shards, picture

SIZES = [(40, 56)] * 5 + [(48, 48)] * 3 + [(40, 56)] * 2


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards"), [4, 3, 3], split="val", sizes=SIZES)


def scored(shards, world_size=1, workers=0, **changes):
    """An integer confusion matrix against a stand-in prediction that depends on the image alone."""
    matrix = np.zeros((4, 4), np.int64)
    for rank in range(world_size):
        with EvaluationLoader(
            shards, "val", batch_size=4, rank=rank, world_size=world_size, workers=workers, **changes
        ) as loader:
            for batch in loader:
                predicted = batch.images[:, 0].numpy() // 64
                counted = batch.labels.numpy() != 255
                pairs = batch.labels.numpy()[counted] * 4 + predicted[counted]
                matrix += np.bincount(pairs, minlength=16).reshape(4, 4)
    return matrix


def expected():
    matrix = np.zeros((4, 4), np.int64)
    for number, size in enumerate(SIZES):
        image, mask = picture(number + 3000, *size)
        np.add.at(matrix, (mask[mask != 255], image[..., 0][mask != 255] // 64), 1)
    return matrix


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("window", [None, 32, 50])
def test_every_labelled_pixel_is_scored_once(shards, world_size, window):
    assert np.array_equal(scored(shards, world_size, window=window), expected())


def test_the_last_windows_are_moved_back_into_the_sample_and_small_samples_are_padded(shards):
    """A black margin is not what a model sees when it draws a map."""
    images = [
        image
        for batch in EvaluationLoader(shards, "val", batch_size=4, window=32)
        for image in batch.images[batch.valid].numpy().transpose(0, 2, 3, 1)
    ]
    image, _ = picture(3000, 40, 56)
    corners = [(0, 0), (0, 24), (8, 0), (8, 24)]
    for actual, (top, left) in zip(images, corners, strict=False):
        assert np.array_equal(actual, image[top : top + 32, left : left + 32])
    batch = next(iter(EvaluationLoader(shards, "val", batch_size=4, window=50)))
    assert np.array_equal(batch.images[0, :, :40].numpy(), image[:, :50].transpose(2, 0, 1))
    assert not batch.images[0, :, 40:].any()
    assert (batch.labels[0, 40:] == 255).all()
    assert (batch.labels[1, :, :44] == 255).all(), "these columns were scored in the first window"


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(shards, workers):
    assert np.array_equal(scored(shards, 2, workers), expected())


def test_batches_have_one_shape_a_fixed_size_and_marked_filling(shards):
    loader = EvaluationLoader(shards, "val", batch_size=4)
    result = list(loader)
    assert len(loader) == len(result) == 3
    assert [tuple(batch.images.shape) for batch in result] == [(4, 3, 40, 56)] * 2 + [(4, 3, 48, 48)]
    assert [batch.valid.tolist() for batch in result] == [
        [True] * 4,
        [True] * 3 + [False],
        [True] * 3 + [False],
    ]
    for batch in result:
        assert (batch.labels[~batch.valid] == 255).all()
    again = list(loader)
    assert [batch.keys for batch in again] == [batch.keys for batch in result]


def test_ranks_are_dealt_the_same_batches_whole(shards):
    whole = [batch.images.numpy().tobytes() for batch in EvaluationLoader(shards, "val", batch_size=4)]
    dealt = [
        batch.images.numpy().tobytes()
        for rank in range(5)
        for batch in EvaluationLoader(shards, "val", batch_size=4, rank=rank, world_size=5)
    ]
    assert dealt == whole


def test_impossible_values_are_refused(shards):
    with pytest.raises(ConfigError, match="batch size"):
        EvaluationLoader(shards, "val", batch_size=0)
    with pytest.raises(ConfigError, match="rank 3"):
        EvaluationLoader(shards, "val", batch_size=2, rank=3, world_size=3)

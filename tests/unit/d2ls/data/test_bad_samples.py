"""Each way a sample can be damaged, under both policies."""

import itertools
import logging
import os
import signal
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from d2ls.data import Augmentation, EvaluationLoader, TrainingLoader
from d2ls.errors import DataError, LabelError, ResourceError, ShardError, StorageError
from d2ls.shards import ShardSet
from tests.shards import make_shards, training_batches

KEY = "train_000002"


def changed_row(shards, **values):
    rows = shards.index.to_pylist()
    rows[2].update(values)
    return replace(shards, index=pa.Table.from_pylist(rows, schema=shards.index.schema))


def shard_of(shards, row):
    return Path(shards.uri, row["shard"])


def overwrite(shards, offset, content):
    row = shards.index.to_pylist()[2]
    with shard_of(shards, row).open("r+b") as file:
        file.seek(row[offset] + 40)
        file.write(content)
    return shards


def change_a_pixel(shards):
    """Of a TIFF without compression, which then decodes without an error."""
    row = shards.index.to_pylist()[2]
    with shard_of(shards, row).open("r+b") as file:
        file.seek(row["image_offset"] + row["image_length"] - 4)
        file.write(b"abcd")


def truncated(shards):
    row = shards.index.to_pylist()[2]
    with shard_of(shards, row).open("r+b") as file:
        file.truncate(row["image_offset"] + 50)
    return shards


def wrong_label(shards):
    """Replaces a mask by one of the same length in bytes that holds label 9; the checksum fits."""
    row = shards.index.to_pylist()[2]
    mask = np.zeros((row["height"], row["width"]), np.uint8)
    mask[3, 5] = 9
    content = cv2.imencode(".png", mask)[1].tobytes()
    with shard_of(shards, row).open("ab") as file:
        start = file.tell()
        file.write(content)
    return changed_row(shards, mask_offset=start, mask_length=len(content), mask_crc32=zlib.crc32(content))


DAMAGES = {
    "truncated": (truncated, ShardError, "truncated"),
    "checksum": (lambda s: overwrite(s, "image_offset", b"damage"), ShardError, "image has checksum"),
    "mask checksum": (lambda s: overwrite(s, "mask_offset", b"damage"), ShardError, "mask has checksum"),
    "size": (lambda s: changed_row(s, height=47), ShardError, "index say"),
    "label": (wrong_label, LabelError, "label 9 at row 3 column 5"),
}


@pytest.fixture
def shards(tmp_path) -> ShardSet:
    return make_shards(tmp_path / "set", [3, 3])


def load(shards, **options):
    augmentation = Augmentation(crop_size=48)
    return training_batches(
        shards, global_batch_size=2, augmentation=augmentation, seed=0, epoch=0, **options
    )


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_sample_is_named(shards, damage, workers):
    make, error, cause = DAMAGES[damage]
    shards = make(shards)
    with pytest.raises(error, match=cause) as raised:
        list(load(shards, workers=workers))
    message = str(raised.value)
    assert "train/train-00000.tar" in message
    assert KEY in message
    assert "\n" not in message


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_sample_is_skipped_counted_and_logged(shards, damage, caplog):
    good = {key: image for batch in load(shards) for key, image in zip(batch.keys, batch.images, strict=True)}
    shards = DAMAGES[damage][0](shards)
    loader = load(shards, bad_samples="skip", skip_limit=1)
    with caplog.at_level(logging.WARNING, logger="d2ls"):
        for batch in loader:
            for place, key in enumerate(batch.keys):
                if key == KEY:
                    assert not batch.valid[place]
                    assert (batch.labels[place] == 255).all()
                    assert (batch.images[place] == 0).all()
                elif damage != "size":
                    assert batch.valid[place]
                    assert batch.images[place].equal(good[key])
    assert loader.loader.skipped == 1
    assert KEY in caplog.text


def test_too_many_bad_samples_stop_the_run(shards):
    shards = DAMAGES["checksum"][0](shards)
    with pytest.raises(DataError, match="the limit is 0"):
        list(load(shards, bad_samples="skip", skip_limit=0))


def test_a_bad_sample_counts_once_however_often_it_is_read(shards):
    shards = DAMAGES["checksum"][0](shards)
    for loader in (
        EvaluationLoader(shards, "train", batch_size=4, window=16, bad_samples="skip", skip_limit=1),
        load(shards, bad_samples="skip", skip_limit=1).loader,
    ):
        for epoch in range(2):
            list(loader if isinstance(loader, EvaluationLoader) else loader.epoch(epoch))
        assert loader.skipped == 1


def test_evaluation_skips_damaged_samples_only_if_set(shards):
    shards = DAMAGES["checksum"][0](shards)
    with pytest.raises(ShardError, match=KEY):
        list(EvaluationLoader(shards, "train", batch_size=4))
    loader = EvaluationLoader(shards, "train", batch_size=4, bad_samples="skip")
    scored = sum(int(batch.valid.sum()) for batch in loader)
    assert (scored, loader.skipped) == (5, 1)


@pytest.mark.parametrize(("verify", "epochs_that_raise"), [("always", 2), ("first", 0), ("never", 0)])
def test_when_checksums_are_compared(tmp_path, verify, epochs_that_raise):
    """Tiled TIFF with a changed pixel decodes without an error; the checksum detects it."""
    shards = make_shards(tmp_path / "tif", [3], suffix="tif", tif={"compress": "none", "predictor": 1})
    loader = EvaluationLoader(shards, "train", batch_size=3, verify=verify)
    list(loader)
    change_a_pixel(shards)
    raised = 0
    for _ in range(2):
        try:
            list(loader)
        except ShardError:
            raised += 1
    assert raised == epochs_that_raise
    if verify == "first":
        with pytest.raises(ShardError, match="checksum"):
            list(EvaluationLoader(shards, "train", batch_size=3, verify=verify))


@pytest.mark.parametrize("window", [None, 32])
def test_a_sample_that_failed_its_check_is_checked_again(tmp_path, window):
    """Else the second window, or the second epoch, would use the damaged pixels."""
    shards = make_shards(tmp_path / "tif", [3], suffix="tif", tif={"compress": "none", "predictor": 1})
    change_a_pixel(shards)
    loader = EvaluationLoader(shards, "train", batch_size=2, window=window, bad_samples="skip", skip_limit=99)
    for _ in range(2):
        used = {key for batch in loader for key, good in zip(batch.keys, batch.valid, strict=True) if good}
        assert KEY not in used
        assert len(used) == 2


def test_filling_is_not_counted_as_a_bad_sample(tmp_path):
    shards = DAMAGES["checksum"][0](make_shards(tmp_path / "last", [3]))
    loader = EvaluationLoader(shards, "train", batch_size=8, bad_samples="skip", skip_limit=1)
    assert sum(int(batch.valid.sum()) for batch in loader) == 2
    assert loader.skipped == 1


def test_a_missing_shard_is_not_a_bad_sample(shards):
    (tar,) = {row["shard"] for row in shards.index.to_pylist()[:3]}
    Path(shards.uri, tar).unlink()
    with pytest.raises(StorageError, match=r"train-00000\.tar"):
        list(load(shards, bad_samples="skip"))


def test_a_dead_worker_is_reported(shards):
    arguments = {"global_batch_size": 2, "augmentation": Augmentation(crop_size=32), "seed": 0, "workers": 1}
    with TrainingLoader(shards, "train", **arguments) as loader:
        epoch = iter(loader.epoch(0))
        next(epoch)
        (worker,) = loader._loader._iterator._workers
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(ResourceError, match="worker died"):
            list(itertools.chain.from_iterable(loader.epoch(number) for number in range(1, 200)))
        assert len(list(loader.epoch(0))) == 3  # a new pool starts

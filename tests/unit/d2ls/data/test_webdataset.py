"""Our plan under webdataset's stages, and webdataset's own reader over our shards."""

import functools
import importlib

import numpy as np
import pytest
import webdataset
from torch.utils.data import DataLoader

from d2ls.data import Augmentation
from d2ls.data.preview import batch_sheet
from d2ls.data.webdataset import PlannedSource, register_opener
from d2ls.errors import StorageError
from tests.shards import CLASSES, make_shards, picture, training_batches

PLAN = {"global_batch_size": 4, "seed": 3, "epoch": 1, "shuffle_window": 8}
crop = Augmentation(crop_size=32, mosaic=0.3)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards"), [5, 4, 6])


def shape_of(sample):
    return {
        "key": sample["__key__"],
        "shape": list(sample["image.png"].shape),
        "scene": sample["json"]["scene"],
    }


def keys(batch):
    return [sample["key"] for sample in batch]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("rank", [0, 1])
def test_the_planned_source_feeds_a_data_pipeline(shards, workers, rank):
    source = PlannedSource(shards, "train", rank=rank, world_size=2, start_step=1, **PLAN)
    pipeline = webdataset.DataPipeline(
        source,
        webdataset.decode("rgb8"),
        webdataset.map(shape_of),
        webdataset.batched(source.lanes, collation_fn=list),
    )
    loader = DataLoader(
        pipeline, batch_size=None, num_workers=workers, multiprocessing_context="fork" if workers else None
    )
    ours = training_batches(shards, augmentation=crop, rank=rank, world_size=2, start_step=1, **PLAN)
    result = list(loader)
    assert [keys(batch) for batch in result] == [list(batch.keys) for batch in ours]
    assert result[0][0]["shape"] == [48, 64, 3]
    assert result[0][0]["scene"].startswith("scene")


def test_the_planned_source_gives_the_bytes_of_the_tar(shards):
    rows = {row["key"]: row for row in shards.index.to_pylist()}
    for sample in PlannedSource(shards, "train", **PLAN):
        row = rows[sample["__key__"]]
        assert len(sample["image.png"]) == row["image_length"]
        assert sample["__url__"].endswith(row["shard"])
        assert sample["__seed__"].epoch == 1


def test_a_stock_pipeline_reads_the_shards(shards):
    urls = [shards.shard_uri(shard.path) for shard in shards.card.splits["train"].shards]
    stock = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode("rgb8")
    samples = {sample["__key__"]: sample for sample in stock}
    assert sorted(samples) == sorted(row["key"] for row in shards.index.to_pylist())
    image, _ = picture(5000, 48, 64)
    assert np.array_equal(samples["train_000000"]["image.png"], image)
    assert samples["train_000014"]["json"] == {"scene": "scene2"}


def test_a_registered_opener_reads_any_storage(shards, monkeypatch):
    gopen = importlib.import_module("webdataset.gopen")
    monkeypatch.setattr(gopen, "gopen_schemes", dict(gopen.gopen_schemes))
    monkeypatch.setattr("d2ls.storage.resolve", functools.partial(local_instead, shards.uri))
    register_opener()
    stock = webdataset.WebDataset(
        ["s3://bucket/train/train-00000.tar"], shardshuffle=False, empty_check=False
    )
    assert len(list(stock)) == 5
    with pytest.raises(StorageError, match="reading only"):
        gopen.gopen_schemes["s3"]("s3://bucket/x", "wb")


def local_instead(root, uri):
    from pyarrow import fs

    return fs.LocalFileSystem(), str(uri).replace("s3://bucket", root)


def test_a_contact_sheet_shows_images_and_labels(shards, tmp_path):
    batches = list(training_batches(shards, augmentation=crop, **PLAN))[:2]
    sheet = batch_sheet(batches, CLASSES, side=64)
    assert sheet.dtype == np.uint8
    assert sheet.shape[1] == 4 * 68
    image = batches[0].images[0].permute(1, 2, 0).numpy()
    assert np.array_equal(sheet[18:82:2, :64:2][:32, :32], image)
    top = 18 + 64 + 4
    colours = CLASSES.colorize(batches[0].labels[0].numpy())
    assert np.array_equal(sheet[top : top + 64 : 2, :64:2], colours)


def test_a_contact_sheet_of_other_bands_and_none(tmp_path):
    deep = make_shards(tmp_path / "deep", [2], suffix="tif", channels=1, dtype="uint16")
    batches = training_batches(deep, augmentation=crop, **{**PLAN, "global_batch_size": 2})
    sheet = batch_sheet(batches, CLASSES, side=32)
    assert len(np.unique(sheet)) > 20
    assert batch_sheet([], CLASSES).ndim == 3

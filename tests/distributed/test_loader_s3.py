"""An object store on this machine (moto): direct ranges, the cache, workers, webdataset's own reader."""

import importlib
import socket
import subprocess
import sys
import time
from dataclasses import replace

import boto3
import numpy as np
import pytest
import webdataset

from d2ls.data import Augmentation, CacheConfig, EvaluationLoader, TrainingLoader
from d2ls.data.webdataset import register_opener
from d2ls.shards import ShardSet
from tests.shards import make_shards, training_batches

CROP = Augmentation(crop_size=32, mosaic=0.5, horizontal_flip=0.5)


@pytest.fixture(scope="module")
def endpoint():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture(scope="module")
def stored(endpoint, tmp_path_factory):
    """A set on the disk, and the same one in a bucket."""
    patch = pytest.MonkeyPatch()
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        patch.setenv(name, value)
    root = tmp_path_factory.mktemp("stored") / "set"
    local = make_shards(root, [4, 3, 5])
    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket="shards")
    for path in sorted(root.rglob("*")):
        if path.is_file():
            client.upload_file(str(path), "shards", f"tiny/{path.relative_to(root)}")
    yield local, ShardSet.open("s3://shards/tiny")
    patch.undo()


def images(batches):
    return [(batch.keys, batch.images.numpy().tobytes(), batch.labels.numpy().tobytes()) for batch in batches]


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_object_store_gives_the_same_batches(stored, tmp_path, workers, cached):
    local, remote = stored
    options = {"global_batch_size": 4, "augmentation": CROP, "seed": 1}
    expected = images(training_batches(local, epoch=1, **options))
    cache = CacheConfig(str(tmp_path / "cache")) if cached else None
    with TrainingLoader(remote, "train", workers=workers, cache=cache, **options) as loader:
        assert images(loader.epoch(1)) == expected
    if cached:
        assert len(list((tmp_path / "cache").glob("*.tar"))) == 3
        gone = replace(remote, uri="s3://nowhere/tiny")  # all bytes come from the cache
        assert images(training_batches(gone, epoch=1, cache=cache, **options)) == expected


def test_evaluation_reads_an_object_store(stored, tmp_path):
    local, remote = stored
    result, expected = (images(EvaluationLoader(shards, "train", batch_size=5)) for shards in (remote, local))
    assert result == expected


def test_a_stock_pipeline_reads_an_object_store(stored, monkeypatch):
    local, remote = stored
    gopen = importlib.import_module("webdataset.gopen")
    monkeypatch.setattr(gopen, "gopen_schemes", dict(gopen.gopen_schemes))
    register_opener()
    urls = [remote.shard_uri(shard.path) for shard in remote.card.splits["train"].shards]
    stock = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode("rgb8")
    shapes = {sample["__key__"]: np.shape(sample["image.png"]) for sample in stock}
    assert shapes == {row["key"]: (48, 64, 3) for row in local.index.to_pylist()}

"""The manifest beside a tar, which marks the shard as finished."""

import numpy as np
import pytest

from sharding.pixel_statistics import PixelSums
from sharding.shard_manifest import ShardManifest, finished_manifest
from sharding.write import write_shard
from tests.loveda_shards import plan_of, spec_of


@pytest.fixture
def written(raw, tmp_path):
    """Folder, task and manifest of one shard."""
    task = plan_of(spec_of(raw)).tasks[1]
    return tmp_path, task, write_shard(task, str(tmp_path))


def test_a_manifest_holds_what_the_shard_holds_and_survives_the_file(written):
    folder, task, manifest = written
    assert manifest.shard.samples == manifest.rows.num_rows == task.samples == 3
    assert manifest.shard.bytes == (folder / task.path).stat().st_size
    assert ShardManifest.from_bytes(manifest.to_bytes()) == manifest
    assert finished_manifest(task, str(folder)) == manifest


@pytest.mark.parametrize(
    "missing", ["the manifest", "the tar", "the end of the tar", "the end of the manifest"]
)
def test_a_shard_that_is_not_whole_is_not_finished(written, missing):
    folder, task, _ = written
    file = folder / (task.manifest if "manifest" in missing else task.path)
    if "end" in missing:
        file.write_bytes(file.read_bytes()[:-7])
    else:
        file.unlink()
    assert finished_manifest(task, str(folder)) is None


def test_the_shard_of_another_plan_is_not_finished(raw, written):
    folder, task, _ = written
    other = plan_of(spec_of(raw, seed=5)).tasks[1]
    assert other.path == task.path
    assert finished_manifest(other, str(folder)) is None


def test_pixel_sums_count_pixels_with_data():
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (9, 8, 2)).astype(np.uint8)
    valid = generator.random((9, 8)) > 0.4
    sums = PixelSums()
    sums.add(image, valid)
    sums.add(image, None)
    kept = [np.concatenate([image[valid][:, band], image[:, :, band].ravel()]).astype(int) for band in (0, 1)]
    assert sums.count == [len(values) for values in kept]
    assert sums.total == [int(values.sum()) for values in kept]
    assert sums.squares == [int((values**2).sum()) for values in kept]
    assert sums.highest == [int(values.max()) for values in kept]

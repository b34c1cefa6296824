import fcntl
import multiprocessing
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from d2ls.data import Augmentation, CacheConfig, EvaluationLoader
from d2ls.data.cache import CachedReader, ShardCache, SplitShards
from d2ls.errors import ConfigError, ShardError, StorageError
from tests.shards import make_shards, training_batches

COUNTS = [3, 3, 3, 3]


@pytest.fixture
def shards(tmp_path):
    return make_shards(tmp_path / "set", COUNTS)


def split_shards(shards):
    return SplitShards.of(shards, "train")


def kept(folder):
    return sorted(path.name for path in folder.glob("*.tar"))


def size_of(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


def two_shards(shards):
    return sum(sorted(shard.bytes for shard in split_shards(shards).files.values())[-2:]) + 100


def test_a_cache_changes_no_batch(shards, tmp_path):
    options = {
        "global_batch_size": 2,
        "augmentation": Augmentation(crop_size=32, mosaic=0.5),
        "seed": 1,
        "epoch": 0,
    }
    cache = CacheConfig(str(tmp_path / "cache"), two_shards(shards), local=True)
    direct = [batch.images for batch in training_batches(shards, **options)]
    cached = [batch.images for batch in training_batches(shards, cache=cache, **options)]
    assert all(one.equal(other) for one, other in zip(direct, cached, strict=True))
    assert len(kept(tmp_path / "cache")) == 2


def test_the_least_recently_used_shard_goes(shards, tmp_path):
    folder, split = tmp_path / "cache", split_shards(shards)
    files = CachedReader(split, CacheConfig(str(folder), two_shards(shards), local=True))
    first, second, third, _ = split.files
    for shard in (first, second, first, third):
        assert files.read(shard, 0, 5) == (tmp_path / "set" / shard).read_bytes()[:5]
        assert size_of(folder) <= two_shards(shards)
    assert kept(folder) == sorted(ShardCache.name(split.files[shard]) for shard in (first, third))
    assert files.read(second, 0, 5)  # evicted before, fetched again
    assert ShardCache.name(split.files[second]) in kept(folder)


@pytest.mark.parametrize("following", [0, 1], ids=["the same shard", "another shard"])
def test_evicted_shards_give_their_disk_space_back(shards, tmp_path, following):
    folder, split = tmp_path / "cache", split_shards(shards)
    files = CachedReader(split, CacheConfig(str(folder), two_shards(shards), local=True))
    first, *_ = split.files
    files.read(first, 0, 5)
    (folder / ShardCache.name(split.files[first])).unlink()  # as another process would
    files.read([*split.files][following], 0, 5)
    handles = [handle for handle in Path("/proc/self/fd").iterdir() if handle.is_symlink()]
    held = [str(handle.readlink()) for handle in handles]
    assert not [name for name in held if str(folder) in name and "(deleted)" in name]


def test_a_shard_gets_its_name_when_it_is_on_the_disk(shards, tmp_path, monkeypatch):
    """A network disk reports a full quota only then; later readers would find a damaged shard."""

    def full(_):
        raise OSError(28, "No space left on device")

    files = CachedReader(split_shards(shards), CacheConfig(str(tmp_path / "cache"), local=True))
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        files.read(next(iter(split_shards(shards).files)), 0, 5)
    assert not kept(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_a_cache_of_another_user_is_named(shards, tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    files = CachedReader(split_shards(shards), CacheConfig(str(tmp_path / "cache"), local=True))
    monkeypatch.setattr("os.utime", refused)
    with pytest.raises(StorageError, match=r"cache: .*not permitted"):
        files.read(next(iter(split_shards(shards).files)), 0, 5)


@pytest.mark.parametrize("damage", ["changed", "short", "long"])
def test_what_arrives_is_compared_with_the_card(shards, tmp_path, damage):
    path = tmp_path / "set" / "train" / "train-00000.tar"
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes({"changed": content, "short": content[:-9], "long": content + b"more"}[damage])
    folder = tmp_path / "cache"
    files = CachedReader(split_shards(shards), CacheConfig(str(folder), 10**9, local=True))
    with pytest.raises(ShardError, match=r"train-00000\.tar.*the card says"):
        files.read("train/train-00000.tar", 0, 5)
    assert not kept(folder)
    assert not list(folder.glob("*.partial"))


def test_a_changed_shard_set_is_not_served_from_the_old_one(shards, tmp_path):
    cache = CacheConfig(str(tmp_path / "cache"), 10**9, local=True)
    list(EvaluationLoader(shards, "train", batch_size=4, cache=cache))
    other = make_shards(tmp_path / "other", COUNTS, size=(32, 32))
    shapes = {
        tuple(batch.images.shape) for batch in EvaluationLoader(other, "train", batch_size=4, cache=cache)
    }
    assert shapes == {(4, 3, 32, 32)}
    assert len(kept(tmp_path / "cache")) == 8


def test_a_shard_larger_than_the_cache_is_refused(shards, tmp_path):
    with pytest.raises(ConfigError, match=r"1000 bytes, but train/train-0000\d\.tar alone"):
        CachedReader(split_shards(shards), CacheConfig(str(tmp_path), 1000, local=True))


def test_a_missing_shard_is_named(shards, tmp_path):
    (tmp_path / "set" / "train" / "train-00001.tar").unlink()
    files = CachedReader(split_shards(shards), CacheConfig(str(tmp_path / "cache"), 10**9, local=True))
    with pytest.raises(StorageError, match=r"train-00001\.tar"):
        files.read("train/train-00001.tar", 0, 5)
    with pytest.raises(ShardError, match="does not name"):
        files.read("train/none.tar", 0, 5)


def test_leftovers_of_a_killed_process_are_removed_and_those_of_a_live_one_are_not(shards, tmp_path):
    folder, split = tmp_path / "cache", split_shards(shards)
    folder.mkdir()
    room = two_shards(shards)
    dead, alive = (folder / f"{digit * 64}.partial" for digit in "de")
    dead.write_bytes(bytes(room))
    with alive.open("wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.truncate(room)
        files = CachedReader(split, CacheConfig(str(folder), room, local=True))
        first = next(iter(split.files))
        assert files.read(first, 0, 5)  # no room besides the arriving shard: read directly
        assert not kept(folder)
        assert not dead.exists()
        assert alive.exists()
    files.read(first, 0, 5)
    assert len(kept(folder)) == 1
    assert not alive.exists()


def hammer(split, config, seed, peak):
    import random

    files, order = CachedReader(split, config), random.Random(seed)
    for _ in range(60):
        shard = order.choice(list(split.files))
        expected = (split.uri + "/" + shard, order.randrange(4000))
        with open(expected[0], "rb") as source:  # noqa: PTH123
            source.seek(expected[1])
            assert files.read(shard, expected[1], 64) == source.read(64)
    peak.value += 1


def test_files_of_the_user_in_the_folder_stay(shards, tmp_path):
    folder, split = tmp_path / "cache", split_shards(shards)
    folder.mkdir()
    own = [folder / "photos.tar", folder / "film.partial"]
    for path in own:
        path.write_bytes(bytes(two_shards(shards)))
    files = CachedReader(split, CacheConfig(str(folder), two_shards(shards), local=True))
    for shard in split.files:
        assert files.read(shard, 0, 5)
    assert all(path.exists() for path in own)
    assert len(kept(folder)) == 3  # two shards, beside the user's


def test_many_processes_share_a_bounded_cache(shards, tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    config = CacheConfig(str(folder), two_shards(shards), local=True)
    context = multiprocessing.get_context("fork")
    done = context.Value("i", 0)
    processes = [
        context.Process(target=hammer, args=(split_shards(shards), config, n, done)) for n in range(4)
    ]
    largest, stop = [0], threading.Event()

    def watch():
        with (folder / ".lock").open("w") as lock:
            while not stop.is_set():
                fcntl.flock(lock, fcntl.LOCK_EX)  # no file is added or removed while they are counted
                largest[0] = max(largest[0], size_of(folder))
                fcntl.flock(lock, fcntl.LOCK_UN)
                time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    for process in processes:
        process.start()
    watcher.start()
    for process in processes:
        process.join(60)
    stop.set()
    watcher.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert 0 < largest[0] <= config.max_bytes
    assert not list(folder.glob("*.partial"))


def test_the_default_folder_lies_below_the_temporary_one(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert CacheConfig().path() == tmp_path / f"d2ls-shards-{os.getuid()}"  # another user's cannot be written
    assert replace(CacheConfig(), folder="/x").path().as_posix() == "/x"

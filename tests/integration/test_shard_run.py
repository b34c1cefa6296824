"""Sharding as a whole: resumed after a kill, equal on Ray and on S3, read by other tools, verified."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from d2ls.errors import ConfigError, LabelError, ShardError, StorageError
from d2ls.shards import ShardSet
from d2ls.shards.codecs import decode_image, decode_mask
from pipeline.config.recipe import parse_recipe
from pipeline.demo.scenery import write_scenery
from pipeline.shard import main
from pipeline.sharding.run import ensure_shards
from sharding.shard_io import only_writer
from sharding.verify import verify

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_scenery(tmp_path_factory.mktemp("raw"), scenes={"Train": 10, "Val": 4, "Test": 4}, size=96)


def recipe(raw, uri, target_mb=0.05, **data):
    values = {"source": "loveda", "root": str(raw), **data}
    shards = {"uri": str(uri), "target_mb": target_mb}
    return parse_recipe({"name": "tiny", "data": values, "shards": shards, "cluster": {"address": "local"}})


def contents(folder):
    """Returns every file of a finished set except the records of the work itself."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in files if "manifests" not in path.parts
    }


KILLED = """
import os, signal, sys
from pathlib import Path
import sharding.write
from pipeline.config.recipe import load_recipe
from pipeline.sharding.run import ensure_shards

point, count = sys.argv[1], int(sys.argv[2])
left = [count]

def dying(function):
    def inner(*arguments, **named):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    return inner

if point == "sample":
    sharding.write._append = dying(sharding.write._append)
elif point == "rename":
    Path.replace = dying(Path.replace)
else:
    sharding.write.storage.write_bytes = dying(sharding.write.storage.write_bytes)
ensure_shards(load_recipe("loveda", sys.argv[3:]), no_ray=True)
"""


@pytest.mark.parametrize(("point", "count"), [("sample", 8), ("rename", 3), ("manifest", 4)])
def test_a_kill_leaves_finished_shards_and_no_half_one(raw, tmp_path, point, count):
    whole = ensure_shards(recipe(raw, tmp_path / "whole"), no_ray=True)
    target = tmp_path / "killed"
    overrides = [f"data.root={raw}", f"shards.uri={target}", "shards.target_mb=0.05", "name=tiny"]
    overrides.append("data.options={}")  # as `recipe` makes it
    script = [sys.executable, "-c", KILLED, point, str(count), *overrides]
    killed = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    tars = list(target.glob("*/*.tar"))  # deeper, in a scratch folder, lies the one that was being written
    assert tars
    for path in tars:
        assert path.read_bytes() == (tmp_path / "whole" / path.relative_to(target)).read_bytes()
    with pytest.raises(ShardError, match="no finished shard set here"):
        ShardSet.open(str(target))
    before = {
        path: path.stat().st_mtime_ns
        for path in tars
        if (target / "manifests" / f"{path.stem}.parquet").exists()
    }
    assert before
    calls = []
    card = ensure_shards(recipe(raw, target), no_ray=True, progress=calls.append)
    assert card.digest == whole.digest
    assert len(calls) == calls[-1].total_shards - len(before)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    assert contents(target) == contents(tmp_path / "whole")


def test_a_second_run_does_nothing_and_a_changed_file_only_its_shard(raw, tmp_path):
    shutil.copytree(raw, tmp_path / "raw")
    source = recipe(tmp_path / "raw", tmp_path / "out")
    first = ensure_shards(source, no_ray=True)
    calls = []
    assert ensure_shards(source, no_ray=True, progress=calls.append) == first
    assert calls == []
    mask = next((tmp_path / "raw" / "Val" / "Urban" / "masks_png").glob("*.png"))
    other = mask.parents[2] / "Rural" / "masks_png"
    mask.write_bytes(next(other.glob("*.png")).read_bytes())
    changed = ensure_shards(source, no_ray=True, progress=calls.append)
    assert len(calls) == 1
    assert changed.digest != first.digest
    assert changed.splits["train"] == first.splits["train"]
    next((tmp_path / "out").glob("test/*.tar")).unlink()
    assert ensure_shards(source, no_ray=True, progress=calls.append) == changed
    assert len(calls) == 2


def test_another_plan_leaves_no_shard_of_the_former(raw, tmp_path):
    ensure_shards(recipe(raw, tmp_path / "out", target_mb=0.02), no_ray=True)
    many = len(list((tmp_path / "out").rglob("*.tar")))
    card = ensure_shards(recipe(raw, tmp_path / "out", target_mb=10), no_ray=True)
    tars = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.tar")}
    assert tars == {shard.path for split in card.splits.values() for shard in split.shards}
    assert len(tars) < many
    verify(str(tmp_path / "out"))


def test_ray_workers_give_the_same_bytes_and_the_same_errors(raw, tmp_path, ray_cluster):
    ensure_shards(recipe(raw, tmp_path / "one"), no_ray=True)
    ensure_shards(recipe(raw, tmp_path / "two"))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    bad = tmp_path / "bad"
    write_scenery(bad, scenes={"Train": 2}, size=64)
    import cv2

    path = next(bad.glob("Train/*/masks_png/*.png"))
    mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    mask[0, 0] = 77
    cv2.imwrite(str(path), mask)
    with pytest.raises(
        LabelError, match=f"{path.name}: unknown label id 77 in 1 pixels, first at row 0 column 0"
    ):
        ensure_shards(recipe(bad, tmp_path / "never"))


def test_tar_and_stock_webdataset_read_a_shard(raw, tmp_path):
    import webdataset

    card = ensure_shards(recipe(raw, tmp_path / "out", codec={"name": "png"}), no_ray=True)
    shards = ShardSet.open(str(tmp_path / "out"))
    path = tmp_path / "out" / card.splits["train"].shards[0].path
    listed = subprocess.run(
        ["tar", "tf", str(path)], capture_output=True, text=True, check=True
    ).stdout.split()
    rows = [row for row in shards.index.to_pylist() if row["shard"] == card.splits["train"].shards[0].path]
    assert listed == [f"{row['key']}.{end}" for row in rows for end in ("image.png", "json", "mask.png")]
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in samples] == [row["key"] for row in rows]
    for sample, row in zip(samples, rows, strict=True):
        image, ids = decode_image(sample["image.png"], "png"), decode_mask(sample["mask.png"])
        assert image.shape == (row["height"], row["width"], 3)
        counts = np.bincount(ids.ravel(), minlength=256)
        assert counts[:7].tolist() == row["class_pixels"]
    decoded = next(iter(webdataset.WebDataset(str(path), shardshuffle=False).decode("rgb8")))
    assert decoded["json"]["scene"] == rows[0]["scene"]
    assert decoded["image.png"].shape == (96, 96, 3)
    with tarfile.open(path) as tar:
        assert {(member.mtime, member.uname, member.uid) for member in tar} == {(0, "d2ls", 0)}


def test_png_files_that_are_tiles_already_are_kept_as_they_are(raw, tmp_path):
    ensure_shards(recipe(raw, tmp_path / "png", codec={"name": "png"}), no_ray=True)
    ensure_shards(recipe(raw, tmp_path / "tif"), no_ray=True)
    shards = ShardSet.open(str(tmp_path / "png"))
    files = {path.read_bytes() for path in Path(raw).rglob("images_png/*.png")}
    for row in shards.index.to_pylist():
        content = Path(shards.shard_uri(row["shard"])).read_bytes()
        assert content[row["image_offset"] : row["image_offset"] + row["image_length"]] in files
    assert shards.card.digest == ShardSet.open(str(tmp_path / "tif")).card.digest


def test_verify_finds_what_was_damaged(raw, tmp_path):
    card = ensure_shards(recipe(raw, tmp_path / "out"), no_ray=True)
    uri = str(tmp_path / "out")
    assert verify(uri) == card
    path = tmp_path / "out" / card.splits["val"].shards[0].path
    content = path.read_bytes()
    path.write_bytes(content[:700] + bytes([content[700] ^ 1]) + content[701:])
    (tmp_path / "out" / "train" / "stranger.tar").write_bytes(b"")
    with pytest.raises(ShardError, match="2 difference") as error:
        verify(uri)
    assert "val-00000.tar: size or BLAKE3" in str(error.value)
    assert "train/stranger.tar: not in the card" in str(error.value)
    path.unlink()
    with pytest.raises(ShardError, match=r"val-00000\.tar"):
        verify(uri)


@pytest.fixture
def s3(monkeypatch):
    from moto.server import ThreadedMotoServer

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    import boto3

    boto3.client("s3").create_bucket(Bucket="shards")
    yield "s3://shards/set"
    with contextlib.suppress(Exception):
        server.stop()


def test_shards_on_s3_are_those_on_disk(raw, tmp_path, s3):
    local = ensure_shards(recipe(raw, tmp_path / "out"), no_ray=True)
    remote = ensure_shards(recipe(raw, s3), no_ray=True)
    assert remote == local
    assert verify(s3) == remote
    calls = []
    assert ensure_shards(recipe(raw, s3), no_ray=True, progress=calls.append) == remote
    assert calls == []
    import boto3

    boto3.client("s3").delete_object(Bucket="shards", Key=f"set/{remote.splits['train'].shards[1].path}")
    assert ensure_shards(recipe(raw, s3), no_ray=True, progress=calls.append) == remote
    assert len(calls) == 1


def test_the_official_zip_archives_are_read_in_place(raw, tmp_path):
    for part in ("Train", "Val"):
        shutil.make_archive(str(tmp_path / "zips" / part), "zip", raw, part)
    unpacked = ensure_shards(recipe(raw, tmp_path / "a", splits=["train", "val"]), no_ray=True)
    with pytest.raises(Exception, match=r"Train\.zip: MD5 is .*de2b196043ed9b4af1690b3f9a7d558f"):
        ensure_shards(recipe(tmp_path / "zips", tmp_path / "b"), no_ray=True)
    zipped = ensure_shards(recipe(tmp_path / "zips", tmp_path / "b", check_archives=False), no_ray=True)
    assert zipped.digest == unpacked.digest


def test_the_command_runs_as_a_module_and_ends_with_a_table(raw, tmp_path):
    command = [
        sys.executable,
        "-m",
        "pipeline.shard",
        "loveda",
        f"data.root={raw}",
        f"shards.uri={tmp_path / 'out'}",
    ]
    started = time.monotonic()
    done = subprocess.run(
        [*command, "--no-ray"], cwd=ROOT, capture_output=True, text=True, timeout=120, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    assert "agriculture" in done.stdout
    assert "shards, index, card and preview/ are in" in done.stdout
    wrong = subprocess.run(
        [*command, "data.sorce=uavid"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert wrong.returncode == 1
    assert "Did you mean source" in wrong.stderr
    assert time.monotonic() - started < 120


def test_batches_draws_what_training_sees(raw, tmp_path, capsys):
    from PIL import Image

    seen = tmp_path / "seen.png"
    words = ["loveda", f"data.root={raw}", f"shards.uri={tmp_path / 'out'}", "train.global_batch_size=3"]
    assert main([*words, "--no-ray"]) == 0
    assert main([*words, "--preview-batches", str(seen)]) == 0
    sheet = np.asarray(Image.open(seen).convert("RGB"))
    assert sheet.shape[1] >= 3 * 192  # a column a sample of the batch
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 50
    assert "split train" in capsys.readouterr().out
    with pytest.raises(StorageError, match=r"seen\.png: exists already; name another file"):
        main([*words, "--preview-batches", str(seen)])
    with pytest.raises(ConfigError, match=r"seen\.jpg: give the name of a \.png file"):
        main([*words, "--preview-batches", str(tmp_path / "seen.jpg")])


def test_the_second_of_two_commands_on_one_target_waits_and_finds_the_work_done(raw, tmp_path, caplog):
    target, calls = tmp_path / "out", []
    with ThreadPoolExecutor(1) as pool:
        with only_writer(str(target)):
            second = pool.submit(ensure_shards, recipe(raw, target), no_ray=True, progress=calls.append)
            while "another command is writing" not in caplog.text:
                assert not second.done(), second.result()
                time.sleep(0.05)
            first = ensure_shards(recipe(raw, tmp_path / "elsewhere"), no_ray=True)
            shutil.copytree(tmp_path / "elsewhere", target, dirs_exist_ok=True)
            assert not second.done()
        assert second.result(60) == first
    assert calls == []

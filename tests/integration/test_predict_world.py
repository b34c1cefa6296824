"""Prediction from a registry and an object store, with a kill and a full disk."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio

from d2ls import storage
from d2ls.errors import StorageError
from d2ls.inference import Predictor
from pipeline import evaluate, load_model, predict
from pipeline.prediction.map_scene import map_scene
from pipeline.prediction.request import MapOptions
from pipeline.registry import versions
from tests.inference_stubs import LocalStub, model_info, tiny_bundle
from tests.tracked_runs import register_blobs

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def scene_file(path: Path, height=150, width=100) -> Path:
    array = np.random.default_rng(0).integers(0, 256, (3, height, width)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=3, dtype="uint8", crs="EPSG:32632",
        transform=rasterio.Affine(0.5, 0, 100, 0, -0.5, 200),
    ) as file:  # fmt: skip
        file.write(array)
    return path


def test_a_registered_model_is_pulled_evaluated_and_maps(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    made = register_blobs(tmp_path)
    shards, store, checkpoint, run, version = (
        made.shards, made.store, made.checkpoint, made.run_id, made.version,
    )  # fmt: skip
    uri = store.uri
    versions.promote(store, "d2ls-blobs", version.version, "the first")
    model = "models:/d2ls-blobs@champion"
    predictor = load_model(model, tracking_uri=uri)
    image = np.random.default_rng(0).integers(0, 256, (60, 70, 3)).astype(np.uint8)
    np.testing.assert_array_equal(predictor.predict(image), load_model(str(checkpoint)).predict(image))
    for name in (f"models:/d2ls-blobs/{version.version}", f"runs:/{run}"):
        np.testing.assert_array_equal(
            load_model(name, tracking_uri=uri).predict(image), predictor.predict(image)
        )

    words = [model, "--shards", shards.uri, "--split", "test", "--tracking-uri", uri]
    assert evaluate.main([*words, "--output", str(tmp_path / "out")]) == 0
    described = versions.find(store, model).description
    assert "Evaluated on blobs, split test" in described
    files = [f.path for f in store.client.list_artifacts(run, "evaluation")]
    assert sorted(files) == ["evaluation/blobs-test.json", "evaluation/blobs-test.md"]
    assert (tmp_path / "out" / "samples-1.png").exists()

    source = scene_file(tmp_path / "scene.tif")
    assert predict.main([model, str(source), str(tmp_path / "map.tif"), "--tracking-uri", uri]) == 0
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.crs.to_epsg() == 32632


@pytest.mark.slow
def test_a_killed_prediction_goes_on_and_ends_the_same(tmp_path) -> None:
    model = tiny_bundle(tmp_path / "model", model_info().classes, window=32)
    source = scene_file(tmp_path / "scene.tif", 900, 90)
    command = [sys.executable, "-m", "pipeline.predict", str(model), str(source), str(tmp_path / "map.tif")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    parts = tmp_path / "map.tif.parts"
    deadline = time.monotonic() + 240
    while len(list(parts.glob("*.labels"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {file.name: file.stat().st_mtime_ns for file in parts.glob("*.labels")}
    assert len(kept) >= 3
    assert not (tmp_path / "map.tif").exists()
    subprocess.run(command, env=environment, check=True, stderr=subprocess.PIPE)
    subprocess.run(
        [*command[:-1], str(tmp_path / "whole.tif")], env=environment, check=True, stderr=subprocess.PIPE
    )
    one, two = (rasterio.open(tmp_path / name).read() for name in ("map.tif", "whole.tif"))
    np.testing.assert_array_equal(one, two)
    assert not parts.exists()


@pytest.mark.parametrize(
    "size", ["64k", "220k", "360k"]
)  # the disk is full when the parts, the plain TIFF, the final TIFF are written
def test_a_full_disk_is_named_and_leaves_no_map(tmp_path, size) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(small)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        source = scene_file(tmp_path / "scene.tif", 700, 700)
        predictor = Predictor(LocalStub(), model_info(window=128))
        with pytest.raises(StorageError, match=r"map\.tif.*(No space|nearly full)"):
            map_scene(predictor, str(source), str(small / "map.tif"), MapOptions(), digest="d")
        assert not list(small.glob("map.tif"))
        assert not list(small.glob(".*"))
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.fixture
def bucket(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        import boto3

        boto3.client("s3").create_bucket(Bucket="maps")
        yield "s3://maps"
    finally:
        server.terminate()
        server.wait(10)


def test_scenes_models_and_maps_in_an_object_store(tmp_path, bucket, monkeypatch) -> None:
    model = tiny_bundle(tmp_path / "model", model_info().classes)
    source = scene_file(tmp_path / "in" / "a" / "scene.tif")
    for file in model.iterdir():
        storage.upload(file, f"{bucket}/model/{file.name}")
    storage.upload(source, f"{bucket}/in/a/scene.tif")
    assert predict.main([f"{bucket}/model", f"{bucket}/in", f"{bucket}/out", "--probabilities"]) == 0
    assert predict.main([str(model), str(source), str(tmp_path / "map.tif")]) == 0
    (tmp_path / "stored.tif").write_bytes(storage.read_bytes(f"{bucket}/out/a/scene.tif"))
    one, two = (rasterio.open(tmp_path / name).read() for name in ("map.tif", "stored.tif"))
    np.testing.assert_array_equal(one, two)
    assert storage.exists(f"{bucket}/out/a/scene.probabilities.tif")
    assert not storage.list_files(f"{bucket}/out/a/scene.tif.parts")
    tag = storage.fingerprint(f"{bucket}/out/a/scene.tif")
    words = [str(model), f"{bucket}/in/a/scene.tif"]
    monkeypatch.chdir(tmp_path)
    assert predict.main([*words, "remote.tif"]) == 0
    assert rasterio.open("remote.tif").read(1).shape == (150, 100)
    assert predict.main([*words, f"{bucket}/out/a"]) == 0
    assert storage.fingerprint(f"{bucket}/out/a/scene.tif") == tag
    with rasterio.open(source, "r+") as file:  # as many bytes as before
        file.write(255 - file.read())
    assert source.stat().st_size == storage.info(words[1]).size
    storage.upload(source, words[1])
    assert predict.main([*words, f"{bucket}/out/a"]) == 0
    assert storage.fingerprint(f"{bucket}/out/a/scene.tif") != tag

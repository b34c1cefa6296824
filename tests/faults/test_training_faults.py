"""Long fault injections: the run ends bit for bit like an undisturbed one."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import psutil
import pytest
import yaml

from d2ls.errors import CheckpointError, ShardError
from d2ls.shards import ShardSet
from d2ls.training.checkpoint_files import complete_checkpoints
from pipeline import cluster
from pipeline.tracking import Store
from pipeline.training.run import TrainRequest, read_result, train
from pipeline.training.run_folder import RunFolder
from tests.tiny_recipes import assert_undisturbed, recipe_values, tiny_recipe, undisturbed
from tests.tiny_trainer import tiny_shards

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def expected(folder):
    return undisturbed(tiny_recipe(folder), folder / "expected")


@pytest.fixture
def local_ray(folder):
    """A Ray for one test: it has the environment of its start, and a later test sets another one."""
    with cluster.connect(tiny_recipe(folder).cluster) as connected:
        yield connected


def wait_for(condition, driver, seconds=400):
    deadline = time.monotonic() + seconds
    while not condition():
        assert driver.poll() is None, driver.stdout.read()
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def start(recipe_file, *words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pipeline.train", str(recipe_file), *words]
    return subprocess.Popen(
        command, cwd=recipe_file.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=hear_interrupts,
    )  # fmt: skip


def hear_interrupts():
    """Restores Ctrl-C, which a shell makes its background jobs and their children ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def end_all(processes):
    """Waits until no worker is left, and ends Ray's agents, which take minutes to notice that Ray has ended."""
    agents = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
    _, alive = psutil.wait_procs([item for item in processes if name_of(item) not in agents], timeout=60)
    assert not alive, "workers outlive their driver"
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def name_of(process):
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


@pytest.mark.survives("the driver is killed (SIGKILL) and started again by `--resume`")
def test_driver_killed_and_started_again(folder, record_property):
    recipe = tiny_recipe(folder, train__epochs=12)
    expected = undisturbed(recipe, folder / "expected-of-reborn")
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe_values(folder, train__epochs=12)))
    run = RunFolder.of(recipe.output_dir, "reborn")

    driver = start(file, "--name", "reborn")
    wait_for(lambda: len(run.epochs()) >= 1 and run.best(), driver)
    below = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    end_all(below)
    assert run.metadata()["state"] == "running"
    run_id = run.metadata()["run_id"]

    refused = start(file, "--resume", "reborn", "train.global_batch_size=2")
    output, _ = refused.communicate()
    assert refused.returncode == 1
    assert "train.global_batch_size was 4, is 2" in output

    again = start(file, "--resume", "reborn")
    output, _ = again.communicate()
    assert again.returncode == 0, output
    result = read_result(run)
    record_property("difference", assert_undisturbed(result, expected))
    record_property(
        "happened", "its workers ended; it went on from the newest checkpoint, in the same MLflow run"
    )
    assert result.run_id == run_id
    actual = Store.open(recipe.tracking).client.get_run(run_id)
    assert actual.info.status == "FINISHED"
    epochs = Store.open(recipe.tracking).client.get_metric_history(run_id, "val/miou")
    assert [metric.value for metric in epochs] == pytest.approx([row["val/miou"] for row in result.history])


@pytest.mark.survives("Ctrl-C")
def test_interrupted_driver_leaves_a_killed_run(folder, record_property):
    recipe = tiny_recipe(folder, train__epochs=200)
    file = folder / "long.yaml"
    file.write_text(yaml.safe_dump(recipe_values(folder, train__epochs=200)))
    run = RunFolder.of(recipe.output_dir, "interrupted")
    driver = start(file, "--name", "interrupted")
    wait_for(lambda: len(run.epochs()) >= 1, driver)
    below = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=120)
    end_all(below)
    assert driver.returncode == 130
    assert run.metadata()["state"] == "killed"
    assert Store.open(recipe.tracking).client.get_run(run.metadata()["run_id"]).info.status == "KILLED"
    record_property("happened", "workers ended, run and MLflow run became `killed`, exit status 130")


@pytest.mark.survives("a shard is cut off")
def test_truncated_shard_is_named(folder, local_ray, record_property):
    shards = folder / "truncated"
    tiny_shards(shards)
    tar = ShardSet.open(str(shards)).card.splits["train"].shards[0].path
    content = (shards / tar).read_bytes()
    (shards / tar).write_bytes(content[: len(content) // 2])
    recipe = tiny_recipe(folder, shards__uri=str(shards))
    with pytest.raises(ShardError, match=Path(tar).name):
        train(TrainRequest(recipe, name="truncated"), quiet=True)
    assert RunFolder.of(recipe.output_dir, "truncated").metadata()["state"] == "failed"
    record_property("happened", "both workers stopped at once; the error names the shard")


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)], check=False)
    if made.returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.survives("the disk is full while a checkpoint is written")
def test_disk_full_while_checkpointing(folder, local_ray, small_disk, expected, record_property):
    recipe = tiny_recipe(folder, output_dir=str(small_disk))
    filler = small_disk / "filler"

    def fill(metrics):
        with contextlib.suppress(OSError), filler.open("ab") as stream:
            while True:
                stream.write(bytes(65536))

    recipe = recipe.with_values({"train.checkpoint.every_steps": 1})
    with pytest.raises(CheckpointError, match=r"No space.*--resume"):
        train(TrainRequest(recipe, name="full"), on_epoch=fill, quiet=True)
    run = RunFolder.of(recipe.output_dir, "full")
    assert run.metadata()["state"] == "failed"
    assert complete_checkpoints(run.checkpoints), "the older one is intact"
    filler.unlink()
    result = train(TrainRequest(recipe, name="full", resume=True), quiet=True)
    record_property("difference", assert_undisturbed(result, expected))
    record_property(
        "happened", "stopped with the reason; went on from the older checkpoint once there was room"
    )
    assert run.metadata()["state"] == "finished"


@pytest.mark.survives("the object store answers 503 to every fifth request")
def test_object_store_that_answers_503_now_and_then(folder, expected, monkeypatch, record_property):
    """Shards are local, run folder and checkpoints in S3 behind a server that fails every fifth request."""
    server = ShakyS3()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    try:
        recipe = tiny_recipe(folder, output_dir="s3://runs/below")
        with cluster.connect(recipe.cluster):
            result = train(TrainRequest(recipe, name="shaky"), quiet=True)
        assert server.refused > 5
        assert result.last_checkpoint.startswith("s3://runs/below/shaky/checkpoints/step-")
        record_property("difference", assert_undisturbed(result, expected))
        record_property(
            "happened", f"asked again, {server.refused} times; run folder and checkpoints were in S3"
        )
    finally:
        server.close()


class ShakyS3:
    """moto's S3 on loopback; every fifth answer is a 503."""

    def __init__(self):
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        inner = DomainDispatcherApplication(create_backend_app)
        self.refused = self._count = 0

        def shaky(environ, start_response):
            self._count += 1
            if self._count % 5 == 0:
                self.refused += 1
                length = int(environ.get("CONTENT_LENGTH") or 0)
                environ["wsgi.input"].read(length)
                start_response("503 Slow Down", [("Content-Length", "0")])
                return [b""]
            return inner(environ, start_response)

        self._server = make_server("127.0.0.1", 0, shaky, threaded=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{self._server.port}"
        self.environment = {
            "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }  # fmt: skip
        import boto3

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            client = boto3.client(
                "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="test",
                aws_secret_access_key="test",
            )  # fmt: skip
            client.create_bucket(Bucket="runs")

    def close(self):
        self._server.shutdown()

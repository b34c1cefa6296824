"""Training in the calling process: what is tried again, what is not, and how it ends."""

import logging
import os
import threading
from types import SimpleNamespace

import pytest
from ray.exceptions import OutOfMemoryError, WorkerCrashedError

from d2ls.errors import ShardError, StorageError, TrainingError
from pipeline.training import build, launch, worker
from pipeline.training.run import TrainRequest, needs_no_ray, train
from pipeline.training.run_folder import RunFolder
from pipeline.training.worker import Job
from tests.tiny_recipes import assert_undisturbed, tiny_recipe, undisturbed

JOB = Job(recipe={}, folder="runs/one", name="one", shards="shards")


def failing(*errors):
    """Trainings of three epochs: each except the last raises after its second epoch, and the next one continues."""
    left, closed = list(errors), []

    def epochs(job):
        start = 1 if len(left) == len(errors) else 2
        try:
            for epoch in range(start, 4):
                yield {"epoch": float(epoch), "step": 2.0 * epoch}
                if epoch == 2 and left:
                    raise left.pop(0)
        finally:
            closed.append(job.name)

    return epochs, closed


@pytest.mark.parametrize("error", [StorageError("503"), RuntimeError("cuDNN error")])
def test_what_may_pass_is_tried_again_and_each_epoch_told_once(monkeypatch, error):
    epochs, closed = failing(error, error)
    monkeypatch.setattr(worker, "epochs", epochs)
    assert [row["epoch"] for row in launch.train_in_process(JOB, max_failures=2)] == [1, 2, 3]
    assert len(closed) == 3


def test_too_many_failures_end_the_training_with_the_first_cause(monkeypatch):
    monkeypatch.setattr(worker, "epochs", failing(*[RuntimeError("out of memory")] * 2)[0])
    with pytest.raises(
        TrainingError, match=r"one failed 2 time\(s\): RuntimeError: out of memory.*--resume one"
    ):
        list(launch.train_in_process(JOB, max_failures=1))
    monkeypatch.setattr(worker, "epochs", failing(StorageError("503"))[0])
    with pytest.raises(StorageError, match="503"):
        list(launch.train_in_process(JOB, max_failures=0))


def test_what_would_only_come_again_is_raised_at_once(monkeypatch):
    epochs, closed = failing(ShardError("cut off"))
    monkeypatch.setattr(worker, "epochs", epochs)
    with pytest.raises(ShardError, match="cut off"):
        list(launch.train_in_process(JOB, max_failures=9))
    assert len(closed) == 1


def test_closing_ends_the_training(monkeypatch):
    epochs, closed = failing()
    monkeypatch.setattr(worker, "epochs", epochs)
    training = launch.train_in_process(JOB, max_failures=9)
    next(training)
    training.close()
    assert closed == ["one"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("in-process")


def test_one_worker_trains_here_without_ray_and_goes_on_after_an_error(folder, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    recipe = tiny_recipe(folder, cluster__workers=1, cluster__address=None, train__epochs=2)
    assert needs_no_ray(recipe)
    assert not needs_no_ray(recipe.with_values({"cluster.workers": 2}))
    assert not needs_no_ray(recipe.with_values({"cluster.address": "local"}))

    def fails(metrics):
        raise OSError(f"listener of epoch {metrics['epoch']}")

    with pytest.raises(OSError, match="listener of epoch 1"):
        train(TrainRequest(recipe, name="one", track=False), on_epoch=fails, quiet=True)
    run = RunFolder.of(recipe.output_dir, "one")
    assert run.metadata()["state"] == "failed"
    rows = []
    result = train(
        TrainRequest(recipe, name="one", resume=True, track=False), on_epoch=rows.append, quiet=True
    )
    assert [row["epoch"] for row in rows] == [2]
    assert run.metadata()["driver"].split(":")[-2] == str(os.getpid())
    assert_undisturbed(result, undisturbed(recipe, folder / "expected"))


def test_a_network_that_cannot_be_built_leaves_no_thread_behind(folder, monkeypatch):
    def fails(*values, **options):
        raise RuntimeError("CUDA out of memory")

    recipe = tiny_recipe(folder, cluster__workers=1, cluster__address=None)
    run = RunFolder.of(recipe.output_dir, "unbuilt")
    run.create(recipe)
    monkeypatch.setattr(build, "trainer", fails)
    before = threading.active_count(), logging.getLogger("d2ls").handlers[:]
    with pytest.raises(RuntimeError, match="CUDA out of memory"):
        list(worker.epochs(Job(recipe.to_dict(), run.uri, run.name, recipe.shards.uri)))
    assert (threading.active_count(), logging.getLogger("d2ls").handlers) == before


def test_what_mlflow_did_not_take_is_kept_when_a_worker_ends(folder, monkeypatch):
    kept = []
    recipe = tiny_recipe(folder, cluster__workers=1, cluster__address=None)
    monkeypatch.setattr(worker, "_callbacks", lambda *values: [])
    monkeypatch.setattr(
        build, "trainer", lambda *values, **options: SimpleNamespace(epochs=lambda: iter([{}]))
    )
    monkeypatch.setattr(RunFolder, "keep_queue", lambda folder: kept.append(folder.name))
    job = Job(
        recipe.to_dict(), str(folder / "runs" / "kept"), "kept", recipe.shards.uri, store="http://host:5000"
    )
    assert list(worker.epochs(job)) == [{}]
    assert kept == ["kept"]


@pytest.mark.parametrize("error", [OutOfMemoryError("Task was killed"), WorkerCrashedError()])
def test_the_end_of_the_process_that_leads_the_workers_is_a_message(folder, monkeypatch, error):
    def ended(reference):
        raise error

    task = SimpleNamespace(remote=lambda *_: "answer")
    monkeypatch.setattr("ray.remote", lambda **_: lambda function: task)
    monkeypatch.setattr("ray.wait", lambda references, timeout: (references, []))
    monkeypatch.setattr("ray.get", ended)
    recipe = tiny_recipe(folder)
    run = RunFolder.of(recipe.output_dir, f"led-{type(error).__name__}")
    run.create(recipe)
    job = Job(recipe.to_dict(), run.uri, run.name, recipe.shards.uri)
    cluster = SimpleNamespace(use_gpu=lambda config: False, per_worker=lambda config: {"CPU": 1})
    with pytest.raises(TrainingError, match=r"run led-\w+: the process that leads .*--resume led-"):
        list(launch.train_on_ray(job, recipe, cluster, run))


def test_another_process_may_be_asked_for_by_the_environment(folder, monkeypatch):
    recipe = tiny_recipe(folder, cluster__workers=1, cluster__address=None)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert not needs_no_ray(recipe)

"""Errors of `pipeline.train` before anything starts, and the imports of a worker."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from d2ls import storage
from d2ls.errors import ConfigError, TrackingError, TrainingError
from d2ls.shards import ShardSet
from pipeline import diagnosis
from pipeline import train as command
from pipeline.tracking import Store, connection
from pipeline.training import run_folder, tracked_run
from pipeline.training.run import TrainRequest, TrainResult, check_resume, read_result, train
from pipeline.training.run_folder import RunFolder
from tests.tiny_recipes import tiny_recipe

WORKER_IMPORTS = {
    "PIL", "annotated_types", "blake3", "cloudpickle", "cv2", "d2ls", "filelock", "isal", "numpy", "pipeline",
    "pyarrow", "pydantic", "pydantic_core", "safetensors", "timm", "torch", "torchvision", "typing_extensions",
    "typing_inspection", "yaml",
}  # fmt: skip
BEHIND_THEM = {
    "anyio", "certifi", "cuda", "cython_runtime", "fsspec", "h11", "httpcore", "httpcore2", "httpx", "httpx2",
    "huggingface_hub", "idna", "mpmath", "networkx", "packaging", "psutil", "requests", "sniffio", "sympy",
    "torchgen", "tqdm", "triton", "truststore", "urllib3", "functorch", "mpl_toolkits", "shellingham", "click",
    "colorama", "defusedxml",
}  # fmt: skip
"""Dependencies of torch, timm and their hub, and what Pillow imports where it is installed (defusedxml): no cluster,
tracking, plotting or data frames."""


def test_a_worker_imports_what_it_needs_and_nothing_beyond():
    program = (
        "import sys; before = set(sys.modules); "
        "import pipeline.training.build, pipeline.training.worker, pipeline.training.progress; "
        "names = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(*sorted(n for n in names if n not in sys.stdlib_module_names and not n.startswith('_')))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert set(result) - WORKER_IMPORTS - BEHIND_THEM == set()


@pytest.mark.parametrize("command", ["train", "doctor"])
def test_help_is_quick_and_teaches(command):
    program = (
        f"import sys; sys.argv = ['x', '--help']\ntry:\n    import pipeline.{command} as m; m.main()\n"
        "except SystemExit:\n    pass\nassert not {'torch', 'ray', 'mlflow'} & set(sys.modules)"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert "examples:" in output
    assert f"python -m pipeline.{command}" in output


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("command")


def test_resume_needs_a_run_and_the_same_recipe(folder):
    recipe = tiny_recipe(folder)
    run = RunFolder.of(recipe.output_dir, "before")
    with pytest.raises(ConfigError, match="no run to resume"):
        check_resume(recipe, run)
    run.create(recipe)
    check_resume(recipe.with_values({"cluster.workers": 1, "loader.workers": 3}), run)
    with pytest.raises(ConfigError, match=r"seed was 0, is 1; train.global_batch_size was 4, is 8"):
        check_resume(recipe.with_values({"seed": 1, "train.global_batch_size": 8}), run)
    run.update(state=run_folder.FINISHED)
    with pytest.raises(ConfigError, match=f"before is finished: it has its {recipe.train.length}"):
        check_resume(recipe, run)


def test_a_run_that_ended_early_goes_on_if_more_is_allowed(folder):
    recipe = tiny_recipe(folder)
    run = RunFolder.of(recipe.output_dir, "early")
    run.create(recipe)
    for epoch, miou in enumerate((0.5, 0.4, 0.3), start=1):
        run.add_epoch({"epoch": epoch, "step": epoch, "val/miou": miou})
    storage.write_bytes(run.progress, json.dumps({"seconds_spent": 3600.0}).encode())
    run.end(run_folder.FINISHED, "out of time")
    for values in ({"patience": 2}, {"time_budget": "1h"}, {"patience": 3, "time_budget": 60}):
        with pytest.raises(
            ConfigError, match=r"early ended early: out of time. It goes on with a larger train"
        ):
            check_resume(recipe.with_values({f"train.{key}": value for key, value in values.items()}), run)
    check_resume(recipe.with_values({"train.patience": 3, "train.time_budget": "2h"}), run)
    check_resume(recipe, run)


def test_a_larger_patience_continues_the_run(folder):
    recipe = tiny_recipe(folder, cluster__workers=1, train__epochs=3, train__patience=1, train__min_delta=1.0)
    request = TrainRequest(recipe, name="impatient", track=False, in_process=True)
    assert len(train(request, quiet=True).history) == 2
    run = RunFolder.of(recipe.output_dir, "impatient")
    assert "(train.patience)" in run.metadata()["reason"]
    again = replace(request, resume=True)
    with pytest.raises(ConfigError, match=r"impatient ended early: val mIoU has not risen"):
        train(again, quiet=True)
    more = replace(again, recipe=recipe.with_values({"train.patience": 2}))
    rows = []
    assert len(train(more, on_epoch=rows.append, quiet=True).history) == 3
    assert [row["epoch"] for row in rows] == [3]
    assert (run.metadata()["state"], run.metadata()["reason"]) == ("finished", "")


def test_a_run_without_an_epoch_has_no_result(folder):
    recipe = tiny_recipe(folder)
    run = RunFolder.of(recipe.output_dir, "empty")
    run.create(recipe)
    with pytest.raises(TrainingError, match="no finished epoch; go on with --resume empty"):
        read_result(run)


def test_an_interrupt_tells_how_to_go_on(folder, monkeypatch, capsys, tmp_path):
    recipe = tiny_recipe(folder, output_dir=str(tmp_path))

    def interrupted(request):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "load_recipe", lambda name, overrides: recipe)
    monkeypatch.setattr(command, "train", interrupted)
    line = ["my.yaml", "--name", "first", "train.epochs=3", "data.custom.classes=[{name: a b}]"]
    with pytest.raises(KeyboardInterrupt):
        command.main(line)
    assert "--resume" not in capsys.readouterr().out, "there is no folder yet"
    RunFolder.of(recipe.output_dir, "first").create(recipe)
    with pytest.raises(KeyboardInterrupt):
        command.main(line)
    assert (
        "Go on with: python -m pipeline.train my.yaml --resume first train.epochs=3 "
        "'data.custom.classes=[{name: a b}]'\n"
    ) in capsys.readouterr().out


class StoreThatGoesAway:
    """An MLflow server that answers when a run begins, but not when it ends."""

    uri = "http://mlflow:5000"
    away = True
    ended = ()

    def start_run(self, *about, keep, **place):
        keep("the-run")
        return "the-run"

    def send_spooled(self, folder):
        if self.away:
            raise TrackingError(f"tracking store {self.uri}: connection refused")
        return 0

    def end_run(self, run_id, status, **about):
        self.ended = (run_id, status)


def test_a_store_that_is_gone_at_the_end_hears_of_it_later(folder, monkeypatch, caplog):
    recipe, store = tiny_recipe(folder), StoreThatGoesAway()
    run, shards = RunFolder.of(recipe.output_dir, "unheard"), ShardSet.open(recipe.shards.uri)
    run.create(recipe)
    run.claim()
    monkeypatch.setattr(Store, "open", lambda config: store)
    with tracked_run.tracked_run(recipe, shards.card, run, "training") as (uri, run_id):
        assert (uri, run_id) == ("http://mlflow:5000", "the-run")
    assert run.metadata()["state"] == "finished"
    assert "connection refused" in caplog.text
    assert "pipeline.doctor" in caplog.text
    store.away = False
    assert [finding.status for finding in diagnosis.check_runs(store, recipe.output_dir)] == ["warning"]
    assert store.ended == ("the-run", "FINISHED")
    assert diagnosis.check_runs(store, recipe.output_dir) == []


def test_a_trial_waits_for_a_server_that_is_away_when_it_begins(folder, monkeypatch, caplog):
    recipe, tries = tiny_recipe(folder), iter([False, False, True])
    run, shards = RunFolder.of(recipe.output_dir, "patient"), ShardSet.open(recipe.shards.uri)
    run.create(recipe)

    def connect(config):
        if not next(tries):
            raise connection.UnreachableError("http://mlflow:5000 does not answer")
        return StoreThatGoesAway()

    monkeypatch.setattr(Store, "open", connect)
    monkeypatch.setattr(connection.time, "sleep", lambda seconds: None)
    with tracked_run.tracked_run(recipe, shards.card, run, "trial", "the-sweep") as (_, run_id):
        assert run_id == "the-run"
    assert "Trying again for 600 s" in caplog.text
    tries = iter([False])
    with (
        pytest.raises(TrackingError, match="does not answer"),
        tracked_run.tracked_run(recipe, shards.card, run, "training"),
    ):
        pass


def test_a_training_that_fails_is_noted_as_failed(folder, monkeypatch):
    recipe = tiny_recipe(folder)
    run, shards = RunFolder.of(recipe.output_dir, "diverged"), ShardSet.open(recipe.shards.uri)
    run.create(recipe)
    monkeypatch.setattr(Store, "open", lambda config: StoreThatGoesAway())
    with (
        pytest.raises(ConfigError, match="diverged"),
        tracked_run.tracked_run(recipe, shards.card, run, "training"),
    ):
        raise ConfigError("diverged")
    assert run.metadata()["state"] == "failed"


def test_options_and_overrides_come_in_any_order(folder, monkeypatch, capsys):
    file = folder / "recipe.yaml"
    file.write_text(tiny_recipe(folder).to_yaml())
    asked = {}

    def pretend(request):
        asked.update(vars(request))
        return TrainResult("a", "", "", "runs/a/checkpoints/step-00000001", "", 1, {"val/miou": 0.5}, {})

    monkeypatch.setattr(command, "train", pretend)
    assert command.main([str(file), "--name", "a", "train.epochs=7", "--profile"]) == 0
    assert (asked["name"], asked["resume"], asked["profile"]) == ("a", False, True)
    assert asked["recipe"].train.epochs == 7
    assert "mIoU 0.5000" in capsys.readouterr().out
    command.main([str(file), "--resume", "b"])
    assert (asked["name"], asked["resume"]) == ("b", True)

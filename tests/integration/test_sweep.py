"""One real sweep through its command line: shards, two trials in one process, the final training, a champion."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from d2ls.errors import D2LSError
from pipeline import sweep
from pipeline.config import load_recipe
from pipeline.config.tracking import TrackingConfig
from pipeline.registry import versions
from pipeline.tracking import Store
from pipeline.training.run import read_result
from pipeline.training.run_folder import RunFolder
from pipeline.tuning.space import trial_recipe
from tests.tiny_recipes import assert_undisturbed, undisturbed
from tests.tiny_sweeps import make_place, tracked, trials

SMALL = [
    "sweep.space={model.stages: {values: [0, 1]}, data.fraction: {values: [0.5]}}",
    "sweep.trial_overrides={train.epochs: 1}", "train.epochs=3",
    "train.patience=1", "train.min_delta=1.0",  # nothing improves so much: the final training ends in epoch 2
    "sweep.max_concurrent_trials=1", "tracking.figures_every=9", "evaluate.bootstrap=5",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with raw scenes and a recipe; the working folder of all tests here."""
    folder, before = make_place(tmp_path_factory.mktemp("sweep")), Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def said(place: Path) -> str:
    """Returns the output of the sweep `first`."""
    text = io.StringIO()
    with redirect_stdout(text):
        sweep.main(["tiny.yaml", "--name", "first", *SMALL])
    return text.getvalue()


def test_a_sweep_ends_with_a_champion_and_every_record_is_finished(place: Path, said: str):
    ended = trials(place, "first")
    assert {trial["status"] for trial in ended.values()} == {"finished"}
    assert len(ended) == 2
    assert "champion" in said
    store = Store.open(TrackingConfig(), folder=place)
    parent = tracked(store, place, "first")
    rows = store.children(parent.run_id)
    assert [parent.status, *(row.status for row in rows)] == ["FINISHED"] * 4
    assert {row.name for row in rows} == {"first-final", *(trial["name"] for trial in ended.values())}
    assert all("val/miou" in row.metrics for row in rows)
    champion = versions.champion(store, "d2ls-tiny")
    assert champion is not None
    assert champion.run_id in {row.run_id for row in rows}
    states = [RunFolder.of("runs", row.name).metadata() for row in rows]
    assert {metadata["state"] for metadata in states} == {"finished"}
    assert len({metadata["driver"] for metadata in states if not metadata["name"].endswith("final")}) == 1, (
        "the process of the first trial did not serve the second"
    )


def test_an_early_end_is_said_in_the_log_the_folder_and_mlflow(place: Path, said: str):
    folder = RunFolder.of("runs", "first-final")
    reason = "val mIoU has not risen by more than 1 in 1 evaluation(s) (train.patience)"
    assert f"the training ends early: {reason}" in said
    assert folder.epochs()[-1]["step"] == 2, "half of the samples make one step of an epoch"
    assert (folder.metadata()["state"], len(folder.epochs())) == ("finished", 2)
    assert folder.metadata()["reason"].startswith(reason)
    row = Store.open(TrackingConfig(), folder=place).run(folder.metadata()["run_id"])
    assert row.tags["d2ls.end"] == folder.metadata()["reason"]


def test_the_second_trial_of_a_process_equals_the_same_training_alone(place: Path, said: str):
    recipe = load_recipe("tiny.yaml", SMALL).anchored()
    last = max(
        trials(place, "first").values(),
        key=lambda trial: RunFolder.of("runs", trial["name"]).metadata()["created"],
    )
    expected = undisturbed(trial_recipe(recipe, last["values"]), place / "alone")
    assert_undisturbed(read_result(RunFolder.of(recipe.output_dir, last["name"])), expected)


@pytest.mark.slow
def test_model_loads_in_a_fresh_process_without_pickle(place: Path, said: str):
    code = (
        "import mlflow, numpy as np; m = mlflow.pyfunc.load_model('models:/d2ls-tiny@champion');"
        "out = m.predict(np.random.default_rng(0).integers(0, 255, (1, 70, 81, 3), dtype=np.uint8));"
        "print('shape', np.asarray(out).shape, np.asarray(out).dtype)"
    )
    environment = {
        **os.environ,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_TRACKING_URI": f"sqlite:///{place / 'mlflow.db'}",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    assert "shape (1, 70, 81) uint8" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["tiny.yaml", "--name", "refused", "cluster.workers=512", "train.global_batch_size=512"],
            "does not fit",
        ),
        (["tiny.yaml", "--name", "first"], "taken"),
        (["tiny.yaml", "--name", "../out"], r"--name '\.\./out': use up to 128"),
        (["tiny.yaml", "--resume", "a/b"], "--resume 'a/b': use up to 128"),
        (["tiny.yaml", "--resume", "nothing"], "no such sweep"),
        (["--resume", "first", "train.epochs=9"], "train.epochs was 3, is 9"),
        (["tiny.yaml", "sweep.space.model.stagse={values: [1]}"], "model.stages"),
        (["tiny.yaml", "roles.val=nothing"], "no split"),
        (["tiny.yaml", "roles.test=train"], "train is also used"),
        (["nowhere.yaml"], "no such recipe"),
    ],
)
def test_wrong_input_is_refused_before_anything_starts(
    place: Path, said: str, words: list[str], message: str
):
    before = sorted(file.name for file in place.iterdir())
    with pytest.raises(D2LSError, match=message):
        sweep.main(words)
    assert sorted(file.name for file in place.iterdir()) == before
    assert not (place / "runs" / "refused").exists(), "its name is free"

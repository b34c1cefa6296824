"""Sweeps for tests: a tiny recipe that is really trained, and trials that only pretend, a few milliseconds an epoch."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import yaml
from rich.console import Console

from d2ls.errors import ShardError
from pipeline.config import Recipe, parse_recipe
from pipeline.demo.scenery import write_scenery
from pipeline.tracking import RunRow, Store
from pipeline.training.run_folder import RunFolder
from pipeline.tuning.report import METRIC
from tests.tiny_recipes import recipe_values

TINY = {
    "name": "tiny",
    "description": "A sweep that ends in a minute.",
    "data": {"source": "loveda", "root": "raw"},
    "shards": {"uri": "shards", "target_mb": 0.2},
    "model": {"backbone": "test_convnext", "pretrained": False},
    "loss": {"contrastive": "infonce"},
    "loader": {"workers": 0, "augmentation": {"crop_size": 64, "mosaic": 0.0}},
    "train": {"epochs": 2, "global_batch_size": 4, "optimizer": {"lr": 1e-3}},
    "evaluate": {"bootstrap": 20},
    "cluster": {"workers": 1},
    "sweep": {
        "space": {"model.stages": {"values": [0, 1]}, "loss.temperature": {"values": [0.1, 0.5]}},
        "max_concurrent_trials": 2,
    },
    "registry": {"promote": "if_better"},
    "tracking": {"figures_every": 2, "system_metrics": False},
}


def make_place(folder: Path) -> Path:
    """Fills a working folder with raw scenes and a recipe, `tiny.yaml`."""
    write_scenery(folder / "raw", scenes={"Train": 8, "Val": 4, "Test": 4}, size=64)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return folder


def sweep(*words: str) -> list[str]:
    """The command line."""
    return [sys.executable, "-m", "pipeline.sweep", *words]


def run(place: Path, *words: str, status: int = 0) -> str:
    """Runs a sweep in a new process to its end and returns its output."""
    done = subprocess.run(sweep(*words), cwd=place, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def tracked(store: Store, place: Path, name: str) -> RunRow:
    """The MLflow run of a sweep, as its folder names it."""
    return store.run(RunFolder.of(str(place / "runs"), name).metadata()["run_id"])


def trials(place: Path, name: str) -> dict[str, dict]:
    """The trial files of a sweep by key."""
    files = (place / "runs" / name / "trials").glob("[!.]*.json")
    return {file.stem: json.loads(file.read_text()) for file in files}


BREAKS, DIES, DIES_ALWAYS = 0.5, 0.25, 0.125
"""Learning rates with which a pretended trial raises in epoch 2, or its process ends there, once or always."""


def pretend(recipe: Recipe, name: str, run_id: str | None, context):
    """Pretends to train a trial: the score is the learning rate times the epoch, plus a little for the seed.

    Like a training it resumes where it stopped, and it logs its events.
    """
    place = Path(recipe.output_dir, "pretended")
    place.mkdir(parents=True, exist_ok=True)
    checkpoint, lr = place / name, recipe.train.optimizer.lr

    def metrics(epoch):
        scored = epoch % recipe.train.evaluate_every == 0 or epoch == recipe.train.epochs
        score = {METRIC: lr * epoch + 1e-4 * recipe.seed} if scored else {}
        return {"epoch": float(epoch), "train/loss": 1.0, **score}

    done = int(checkpoint.read_text()) if checkpoint.exists() else 0
    note(place, f"begin {name} {os.getpid()} {done}")
    try:
        for epoch in range(done + 1, recipe.train.epochs + 1):
            time.sleep(0.005)
            if epoch == 2 and lr == BREAKS:
                raise ShardError("a shard is broken")
            if epoch == 2 and (lr == DIES_ALWAYS or (lr == DIES and done == 0)):
                os._exit(1)
            checkpoint.write_text(str(epoch))
            yield metrics(epoch)
        return SimpleNamespace(history=[metrics(epoch) for epoch in range(1, recipe.train.epochs + 1)])
    finally:
        note(place, f"end {name}")


def note(place: Path, line: str) -> None:
    with (place / "log.txt").open("a") as log:
        log.write(f"{line}\n")


def happened(folder: Path, word: str) -> list[list[str]]:
    """Returns the log lines of pretended trials that begin with a word, without that word."""
    lines = (folder / "runs" / "pretended" / "log.txt").read_text().splitlines()
    return [line.split()[1:] for line in lines if line.split()[0] == word]


def recipe_of(folder: Path, **changes) -> Recipe:
    """A recipe for pretended trials of one worker; see `tests.tiny_recipes.recipe_values`."""
    keys = {"cluster__workers": 1, "train__epochs": 4, "cluster__max_failures": 1, **changes}
    return parse_recipe(recipe_values(folder, **keys))


def over(*rates: float, **section) -> dict:
    """A section `sweep` over learning rates, one trial at a time, without a final training."""
    return {
        "space": {"train.optimizer.lr": {"values": list(rates)}},
        "max_concurrent_trials": 1,
        "final": False,
        "overrides": {},
        **section,
    }


def run_sweep(recipe: Recipe, console: Console | None = None, **options):
    """Runs a sweep of pretended trials; trial processes import this module, but not what only a sweep needs."""
    from pipeline.tuning.run import SweepRequest, sweep

    return sweep(SweepRequest(recipe, train_trial=pretend, **options), console=console)


def run_pretended(recipe: Recipe, **options):
    """Runs a sweep of pretended trials in this process; returns its result and its output."""
    console = Console(file=io.StringIO(), width=300)
    result = run_sweep(recipe, console, **options)
    return result, console.file.getvalue()


if __name__ == "__main__":  # a driver to be killed: recipe file, then the options of `run_pretended` as JSON
    recipe = parse_recipe(yaml.safe_load(Path(sys.argv[1]).read_text()))
    run_sweep(recipe, **json.loads(sys.argv[2]))

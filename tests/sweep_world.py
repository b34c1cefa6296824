"""A tiny recipe over drawn scenes, and sweeps over it through the command line."""

import json
import subprocess
import sys
from pathlib import Path

import yaml

from pipeline.tracking import RunRow, Store
from pipeline.training.run_folder import RunFolder
from sharding.scenery import write_scenery

TINY = {
    "name": "tiny",
    "description": "A sweep that ends in a minute.",
    "data": {"source": "loveda", "root": "raw"},
    "shards": {"uri": "shards", "target_mb": 0.2},
    "model": {"backbone": "test_convnext", "pretrained": False},
    "loss": {"contrastive": "infonce"},
    "loader": {"workers": 0, "augmentation": {"crop_size": 64, "mosaic": 0.0}},
    "train": {"epochs": 2, "global_batch": 4, "optimizer": {"lr": 1e-3}},
    "evaluate": {"bootstrap": 20},
    "cluster": {"workers": 1},
    "sweep": {
        "space": {"model.stages": {"values": [0, 1]}, "loss.temperature": {"values": [0.1, 0.5]}},
        "concurrent": 2,
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
    """Runs a sweep to its end and returns what it said."""
    done = subprocess.run(sweep(*words), cwd=place, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def tracked(store: Store, place: Path, name: str) -> RunRow:
    """The MLflow run of a sweep, as its folder names it."""
    return store.run(RunFolder.of(str(place / "runs"), name).facts()["run_id"])


def trials(place: Path, name: str) -> dict[str, dict]:
    """The trial files of a sweep by key."""
    files = (place / "runs" / name / "trials").glob("[!.]*.json")
    return {file.stem: json.loads(file.read_text()) for file in files}

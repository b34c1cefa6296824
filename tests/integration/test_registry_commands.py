"""`pipeline.register` and `pipeline.promote`, from a run folder to a champion, scored on real report data."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from d2ls.errors import TrackingError
from pipeline import promote, register
from pipeline.config.tracking import TrackingConfig
from pipeline.tracking import Store
from tests.tracking_world import make_checkpoint, make_recipe, make_shards


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    shards = make_shards(tmp_path / "shards")
    recipe = make_recipe(shards, **{"evaluate.bootstrap": 0})
    store = Store.open(TrackingConfig())
    for name, seed in (("first", 0), ("second", 1)):
        folder = tmp_path / "runs" / name
        make_checkpoint(folder / "checkpoints" / "step-30", shards, recipe, seed)
        (folder / "checkpoints" / "best.json").write_text(json.dumps({"checkpoint": "step-30", "step": 30}))
        run = store.start_training_run(recipe, shards.card, name, tags={"d2ls.run_folder": str(folder)})
        store.end_run(run)
    return store


def call(module: object, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    module.main()  # type: ignore[attr-defined]


def test_from_runs_to_a_champion(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert store.find("first").tags["d2ls.run_folder"] == "runs/first"
    call(register, monkeypatch, "first")
    assert "models:/d2ls-blobs/1 is registered, alias challenger" in capsys.readouterr().out
    call(promote, monkeypatch, "d2ls-blobs")
    assert "models:/d2ls-blobs/1: champion: mIoU" in capsys.readouterr().out
    call(register, monkeypatch, "second", "--no-evaluation")
    call(promote, monkeypatch, "d2ls-blobs")
    said = capsys.readouterr().out
    scores = [float(score) for score in re.findall(r"\d\.\d{4}", said.splitlines()[-1])]
    champion = store.champion("d2ls-blobs")
    assert champion is not None
    assert champion.version == ("2" if scores[0] > scores[1] else "1")
    second = store.client.get_model_version("d2ls-blobs", "2").description
    assert ("Champion: mIoU" if scores[0] > scores[1] else "Not promoted: mIoU") in second
    loser = "1" if champion.version == "2" else "2"
    call(promote, monkeypatch, "d2ls-blobs", "--version", loser, "--force", "a person looked at the maps")
    forced = store.champion("d2ls-blobs")
    assert forced is not None
    assert forced.version == loser
    assert "forced: a person looked at the maps" in forced.description
    call(promote, monkeypatch, "d2ls-blobs", "--version", loser)
    assert "it reigns already" in capsys.readouterr().out


def test_what_is_missing_is_named(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"no run 'third'.*Newest runs: second, first"):
        call(register, monkeypatch, "third")
    with pytest.raises(TrackingError, match=r"d2ls-blobs@challenger: not in the registry"):
        call(promote, monkeypatch, "d2ls-blobs")
    shutil.rmtree(tmp_path / "runs" / "first" / "checkpoints")
    with pytest.raises(TrackingError, match=r"no complete checkpoint.*--checkpoint FOLDER"):
        call(register, monkeypatch, "first")

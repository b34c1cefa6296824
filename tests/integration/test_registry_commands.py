"""`pipeline.register` and `pipeline.promote`, from a run folder to a champion, scored on real report data."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio

from d2ls.bundle import read_info
from d2ls.errors import ConfigError, TrackingError
from pipeline import evaluate, predict, promote, register
from pipeline.models import load_model
from pipeline.registry import logged_model, model_files, versions
from pipeline.tracking import Store
from pipeline.training.run_folder import RunFolder
from tests.tracked_runs import make_recipe, make_run, make_shards, make_store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    shards = make_shards(tmp_path / "shards")
    recipe = make_recipe(shards, **{"evaluate.bootstrap": 0, "model.backbone": "test_convnext"})
    store = make_store(tmp_path)
    for name, seed in (("first", 0), ("second", 1)):
        make_run(store, tmp_path / "runs", name, shards, recipe, seed)
    return store


def call(module: object, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    module.main()  # type: ignore[attr-defined]


def test_from_runs_to_a_champion(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(register, monkeypatch, "first")
    assert "models:/d2ls-blobs/1 is registered, alias challenger" in capsys.readouterr().out
    call(promote, monkeypatch, "d2ls-blobs")
    assert "models:/d2ls-blobs/1: champion: mIoU" in capsys.readouterr().out
    call(register, monkeypatch, "second", "--no-evaluation")
    call(promote, monkeypatch, "d2ls-blobs")
    said = capsys.readouterr().out
    scores = [float(score) for score in re.findall(r"\d\.\d{4}", said.splitlines()[-1])]
    champion = versions.champion(store, "d2ls-blobs")
    assert champion is not None
    assert champion.version == ("2" if scores[0] > scores[1] else "1")
    second = store.client.get_model_version("d2ls-blobs", "2").description
    assert ("Champion: mIoU" if scores[0] > scores[1] else "Not promoted: mIoU") in second
    loser = "1" if champion.version == "2" else "2"
    call(promote, monkeypatch, "d2ls-blobs", "--version", loser, "--force", "a person looked at the maps")
    forced = versions.champion(store, "d2ls-blobs")
    assert forced is not None
    assert forced.version == loser
    assert "forced: a person looked at the maps" in forced.description
    call(promote, monkeypatch, "d2ls-blobs", "--version", loser)
    assert "it is already the champion" in capsys.readouterr().out


def test_maps_of_a_registered_model_take_its_temperature_and_report(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(register, monkeypatch, "first")
    call(register, monkeypatch, "second", "--no-evaluation")
    temperature = read_info(versions.download(store, "models:/d2ls-blobs/1")).temperature
    assert temperature is not None
    assert temperature != 1
    version = versions.find(store, "models:/d2ls-blobs/1")
    assert f"at temperature {temperature:g}, fitted on split `val`; expected" in version.description
    place = rasterio.Affine(0.5, 0, 400_000, 0, -0.5, 5_000_000)
    profile = {"height": 80, "width": 70, "count": 3, "dtype": "uint8", "crs": "EPSG:32632"}
    with rasterio.open(tmp_path / "scene.tif", "w", driver="GTiff", transform=place, **profile) as file:
        file.write(np.random.default_rng(0).integers(0, 255, (3, 80, 70)).astype(np.uint8))
    capsys.readouterr()
    for number in ("1", "2"):
        words = ["scene.tif", f"{number}.tif", "--hectares", "--confidence"]
        call(predict, monkeypatch, f"models:/d2ls-blobs/{number}", *words)
        said = capsys.readouterr().err
        has_both = number == "1"
        assert said.count("was registered without an evaluation report") == (not has_both)
        assert said.count("the model has no temperature") == (not has_both)
        header = (tmp_path / f"{number}.areas.csv").read_text().splitlines()[0]
        assert ("adjusted_hectares" in header) == has_both
    plain = load_model(str(RunFolder.of("runs", "first").best()["uri"]))
    with rasterio.open("scene.tif") as scene, rasterio.open("1.tif") as labels:
        image = scene.read().transpose(1, 2, 0)
        assert np.array_equal(labels.read(1), plain.predict(image))
    with rasterio.open("1.confidence.tif") as file:
        shares = plain.probabilities(image).astype(np.float64) ** (1 / temperature)
        expected = (shares / shares.sum(axis=0)).max(axis=0)
        np.testing.assert_allclose(file.read(1) / 250, expected, atol=0.003)


def test_what_is_missing_is_named(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no run 'third'.*Newest runs there: second, first.*--output-dir FOLDER"
    ):
        call(register, monkeypatch, "third")
    with pytest.raises(TrackingError, match=r"d2ls-blobs@challenger: not in the registry"):
        call(promote, monkeypatch, "d2ls-blobs")
    shutil.rmtree(tmp_path / "runs" / "first" / "checkpoints")
    with pytest.raises(TrackingError, match=r"no complete checkpoint.*--checkpoint FOLDER"):
        call(register, monkeypatch, "first")


def digest_of(store: Store, version: str) -> str:
    return model_files.bundle_digest(versions.download(store, f"models:/d2ls-blobs/{version}"))


def test_two_folders_with_one_server_and_one_name_never_mix(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shards = make_shards(tmp_path / "others-shards", side=64)
    recipe = make_recipe(shards, **{"seed": 7, "registry.name": "d2ls-others"})
    theirs = make_run(store, tmp_path / "other" / "runs", "first", shards, recipe, seed=5)
    ours = RunFolder.of("runs", "first")
    assert ours.metadata()["run_id"] != theirs.metadata()["run_id"]
    call(register, monkeypatch, "first", "--no-evaluation")
    version = versions.find(store, "models:/d2ls-blobs/1")
    assert version.run_id == ours.metadata()["run_id"]
    assert digest_of(store, "1") == model_files.bundle_digest(Path(ours.best()["uri"]))
    assert versions.recipe_of(store, version).seed == 0
    call(
        register,
        monkeypatch,
        theirs.metadata()["run_id"],
        "--output-dir",
        str(tmp_path / "other" / "runs"),
        "--no-evaluation",
    )
    assert versions.find(store, "models:/d2ls-others/1").run_id == theirs.metadata()["run_id"]


def test_weights_recipe_and_run_of_different_trainings_are_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shards = make_shards(tmp_path / "more-shards", side=64)
    other = make_run(store, tmp_path / "runs", "other", shards, make_recipe(shards, seed=7), seed=5)
    with pytest.raises(
        TrackingError, match=r"trained by another recipe.*Register the run folder that holds both"
    ):
        call(register, monkeypatch, "first", "--no-evaluation", "--checkpoint", other.best()["uri"])
    RunFolder.of("runs", "first").update(run_id=other.metadata()["run_id"])
    with pytest.raises(TrackingError, match=r"belongs to another training: its tag d2ls.name is 'other'"):
        call(register, monkeypatch, "first", "--no-evaluation")
    assert versions.search(store, "d2ls-blobs") == []


def test_a_half_made_model_does_not_stay_and_a_whole_one_is_taken(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*about: object, **more: object) -> None:
        raise KeyboardInterrupt

    run_id = RunFolder.of("runs", "first").metadata()["run_id"]
    experiment = store.client.get_run(run_id).info.experiment_id
    store.client.create_logged_model(
        experiment, name="d2ls-blobs", source_run_id=run_id
    )  # by a process that died
    with monkeypatch.context() as patched:
        patched.setattr(logged_model, "_create_version", killed)
        with pytest.raises(KeyboardInterrupt):
            call(register, monkeypatch, "first", "--no-evaluation")
    (whole,) = store.client.search_logged_models([experiment])
    call(register, monkeypatch, "first", "--no-evaluation")
    assert [model.model_id for model in store.client.search_logged_models([experiment])] == [whole.model_id]
    assert versions.find(store, "models:/d2ls-blobs/1").model_id == whole.model_id


def test_what_was_deleted_is_named_or_not_needed(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(register, monkeypatch, "first", "--no-evaluation")
    call(promote, monkeypatch, "d2ls-blobs", "--force", "the only one")
    call(register, monkeypatch, "second", "--no-evaluation")
    run_id = RunFolder.of("runs", "second").metadata()["run_id"]
    store.client.delete_run(run_id)
    call(promote, monkeypatch, "d2ls-blobs")  # the version carries its recipe
    store.client.delete_logged_model(versions.find(store, "models:/d2ls-blobs/1").model_id)
    versions.promote(store, "d2ls-blobs", "1", "for the test")
    store.client.set_registered_model_alias("d2ls-blobs", "challenger", "2")
    with pytest.raises(TrackingError, match=r"cannot be fetched.*without scoring it: --force REASON"):
        call(promote, monkeypatch, "d2ls-blobs")
    store.client.delete_model_version("d2ls-blobs", "1")
    assert versions.champion(store, "d2ls-blobs") is None, "its alias went with it"
    with pytest.raises(TrackingError, match=r"d2ls-blobs has versions 2 and aliases challenger"):
        versions.download(store, "models:/d2ls-blobs@champion")
    call(promote, monkeypatch, "d2ls-blobs")
    assert "there was no champion" in capsys.readouterr().out.splitlines()[-1]
    with pytest.raises(TrackingError, match="mlflow runs restore"):
        call(register, monkeypatch, "second", "--no-evaluation")


def test_many_decisions_fit_into_a_description(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    call(register, monkeypatch, "first", "--no-evaluation")
    for number in range(20):
        versions.note(store, "d2ls-blobs", "1", f"decision {number}: " + "because " * 40)
    text = versions.by_version(store, "d2ls-blobs", "1").description
    assert len(text) <= 5000
    assert "## Input and output" in text
    assert "decision 19" in text
    assert "decision 0:" not in text
    assert text.count("## Decisions") == 1


def test_a_training_without_a_run_is_registered_with_a_new_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder.of("runs", "first")
    before = folder.metadata()["run_id"]
    folder.update(run_id="")  # its run was removed by `mlflow gc`, and the error named this way out
    call(register, monkeypatch, "first", "--no-evaluation")
    run_id = versions.find(store, "models:/d2ls-blobs/1").run_id
    assert run_id not in ("", before)
    assert (folder.metadata()["run_id"], store.run(run_id).status) == (run_id, "FINISHED")


def test_a_report_on_a_model_whose_run_is_gone_goes_to_the_version(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(self: Store, run_id: str, text: str, file: str) -> None:
        raise TrackingError(f"run {run_id}: not found")

    call(register, monkeypatch, "first", "--no-evaluation")
    monkeypatch.setattr(Store, "log_text", gone)
    evaluate.main(["models:/d2ls-blobs/1", "--shards", "shards", "--split", "test", "--bootstrap", "0"])
    assert "attached to the version alone" in caplog.text
    assert "Evaluated on blobs, split test" in versions.by_version(store, "d2ls-blobs", "1").description

"""Registered models: versions, aliases, decisions; loaded without pickle, without this project, side by side."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from d2ls.bundle import ModelInfo, read_info
from d2ls.errors import TrackingError, WeightsError
from d2ls.inference import Predictor
from d2ls.models import build_model
from d2ls.models.saving import load_bundle, save_bundle
from d2ls.shards import ShardSet
from pipeline.config import Recipe
from pipeline.registry import ModelVersion, model_code, model_files, register_checkpoint, versions
from pipeline.registry.promotion import should_promote
from tests.tracked_runs import log_metrics, make_checkpoint, make_recipe, make_shards, make_store

NAME = "d2ls-blobs"
EVALUATION = {
    "split": "test",
    "scores": {"miou": 0.5, "mf1": None, "ece": 0.03, "iou": {"field": 0.25, "forest": None}},
}
CALIBRATED = {**EVALUATION, "calibration": {"temperature": 1.5, "ece": 0.03, "ece_at_temperature_1": 0.125}}


class World:
    """A store with one run and one registered version."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards: ShardSet = make_shards(folder / "shards")
        self.recipe: Recipe = make_recipe(self.shards)
        self.store = make_store(folder)
        self.checkpoint = make_checkpoint(folder / "checkpoint", self.shards, self.recipe)
        self.run_id = self.store.start_run(self.recipe, self.shards.card, "run")
        log_metrics(self.store, self.run_id, {"val/miou": 0.4}, step=30)
        log_metrics(
            self.store, self.run_id, {"val/miou": 0.3, "val/oa": 0.6}, step=40
        )  # after the checkpoint
        self.version = self.register(self.checkpoint)

    def register(self, checkpoint: Path) -> ModelVersion:
        return register_checkpoint(
            self.store,
            self.run_id,
            checkpoint,
            NAME,
            card=self.shards.card,
            evaluation=EVALUATION,
            recipe=self.recipe,
            step=30,
        )

    def load(self, script: str, **environment: str) -> Any:
        """Runs a script in a process without this project; returns the JSON that it prints last."""
        blocked = (
            "import sys\nfor name in ('d2ls', 'pipeline', 'sharding', 'ray'): sys.modules[name] = None\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", blocked + script], cwd=self.folder / "elsewhere", check=False, text=True,
            capture_output=True, timeout=300,
            env={**os.environ, "MLFLOW_TRACKING_URI": self.store.uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
                 "MLFLOW_DISABLE_TELEMETRY": "true", **environment},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("registry")
    (folder / "elsewhere").mkdir()
    return World(folder)


def test_a_version_carries_card_tags_and_links(world: World) -> None:
    version = world.version
    assert (version.version, version.aliases, version.run_id) == ("1", ("challenger",), world.run_id)
    assert version.tags["report_miou"] == "0.5000"
    assert version.tags["dataset_digest"] == world.shards.card.digest
    for words in ("CC0-1.0", "clean protocol", "Limits", "mIoU 0.5000", "| field | 0.2500 |"):
        assert words in version.description
    model = world.store.client.get_logged_model(version.model_id)
    linked = {metric.key: metric.value for metric in model.metrics}
    assert linked["val/miou"] == 0.4
    assert "val/oa" not in linked, "a later value is not this checkpoint's"
    assert (linked["test/miou"], linked["test/ece"]) == (0.5, 0.03)
    assert model.source_run_id == world.run_id
    assert world.store.client.get_run(world.run_id).outputs.model_outputs[0].model_id == version.model_id
    assert not (world.folder / "elsewhere" / "mlflow.db").exists()


def test_the_same_weights_are_registered_once(world: World) -> None:
    assert world.register(world.checkpoint).version == "1"


def test_a_model_without_temperature_gets_a_version_with_temperature_and_report(
    world: World, tmp_path: Path
) -> None:
    run = world.store.start_run(world.recipe, world.shards.card, "calibrated")

    def register(evaluation: dict[str, Any] | None) -> ModelVersion:
        return register_checkpoint(
            world.store, run, world.checkpoint, "calibrated", card=world.shards.card, evaluation=evaluation,
            recipe=world.recipe,
        )  # fmt: skip

    bare = register(None)
    assert "no temperature was fitted" in bare.description
    assert versions.report_of(world.store, bare.uri) is None
    version = register(CALIBRATED)
    assert version.version == "2"
    assert version.tags["calibration_temperature"] == "1.5"
    words = "at temperature 1.5, fitted on split `val`; expected calibration error on `test` 0.1250 without it, 0.0300"
    assert words in version.description
    for evaluation in (CALIBRATED, None):
        assert register(evaluation).version == "2", "the same weights"
    bundle = versions.download(world.store, version.uri, tmp_path / "copy")
    assert (bundle / "model.safetensors").read_bytes() == (
        world.checkpoint / "model.safetensors"
    ).read_bytes()
    assert read_info(bundle) == replace(read_info(world.checkpoint), temperature=1.5)
    assert json.loads(versions.report_of(world.store, version.uri) or "") == CALIBRATED
    assert json.loads(versions.report_of(world.store, f"runs:/{world.run_id}") or "") == EVALUATION
    with pytest.raises(TrackingError, match="models: "):
        versions.report_of(world.store, "models:/d2ls-unknown/1")


def test_the_files_hold_no_pickle_and_list_few_requirements(world: World) -> None:
    bundle = versions.download(world.store, f"models:/{NAME}@challenger")
    folder = bundle.parent.parent
    assert not [file for file in folder.rglob("*") if file.suffix in (".pkl", ".pt", ".pth", ".bin")]
    required = (folder / "requirements.txt").read_text().split()
    assert sorted(line.split("==")[0] for line in required) == sorted(model_code.REQUIREMENTS)
    assert {"README.md", "evaluation.json", "recipe.yaml", "card.json"} <= {
        file.name for file in (folder / "artifacts").rglob("*")
    }


def test_download_takes_every_form_of_name(world: World, tmp_path: Path) -> None:
    forms = [
        f"models:/{NAME}@challenger",
        f"models:/{NAME}/1",
        f"models:/{world.version.model_id}",
        f"runs:/{world.run_id}",
    ]
    digests = {model_files.bundle_digest(versions.download(world.store, form)) for form in forms}
    assert digests == {model_files.bundle_digest(world.checkpoint)}
    copy = versions.download(world.store, f"models:/{NAME}/1", tmp_path / "copy")
    assert copy.is_relative_to(tmp_path)
    with pytest.raises(TrackingError, match=r"versions 1 and aliases challenger"):
        versions.download(world.store, f"models:/{NAME}@nobody")
    with pytest.raises(TrackingError, match=f"models: .*{NAME}"):
        versions.download(world.store, "models:/d2ls-unknown/1")
    with pytest.raises(TrackingError, match="models:/name@alias"):
        versions.download(world.store, "models:/x")


def test_a_folder_without_a_model_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no model.json"):
        world.register(tmp_path)


def test_it_maps_images_of_any_size_without_this_project_and_without_pickle(world: World) -> None:
    image = np.random.default_rng(1).integers(0, 255, (2, 80, 50, 3)).astype(np.uint8)
    np.save(world.folder / "elsewhere" / "image.npy", image)
    result = world.load(
        "import json, mlflow, numpy as np\n"
        f"model = mlflow.pyfunc.load_model('models:/{NAME}@challenger')\n"
        "image = np.load('image.npy')\n"
        "labels = model.predict(image)\n"
        "shares = model.predict(image[:1], params={'probabilities': True})\n"
        "wide = model.predict(image[:, :33, :, :])\n"
        "network = model.unwrap_python_model().network\n"
        "try: model.predict(image[..., :2]); refused = False\n"
        "except Exception: refused = True\n"
        "print(json.dumps({'labels': labels.tolist(), 'dtype': str(labels.dtype), 'shape': shares.shape,\n"
        "    'sum': float(shares.sum(axis=1).mean()), 'wide': wide.shape, 'module': type(network).__module__,\n"
        "    'refused': refused}))\n"
    )
    expected = Predictor(*load_bundle(world.checkpoint)).predict(image)
    assert np.array_equal(np.array(result["labels"], np.uint8), expected)
    assert result["dtype"] == "uint8"
    assert result["shape"] == [1, 4, 80, 50]
    assert result["sum"] == pytest.approx(1.0, abs=1e-5)
    assert result["wide"] == [2, 33, 50]
    assert result["module"].startswith("d2ls_")
    assert result["refused"]


def test_a_baseline_brings_its_library_and_nothing_is_fetched(world: World, tmp_path: Path) -> None:
    torch.manual_seed(0)
    unet = build_model(architecture="unet", backbone="test_resnet", num_classes=4).eval()
    checkpoint = tmp_path / "unet"
    checkpoint.mkdir()
    info = ModelInfo.from_card(unet, world.shards.card, window=64, recipe_digest=world.recipe.digest())
    save_bundle(checkpoint, unet, info)
    run = world.store.start_run(world.recipe, world.shards.card, "unet")
    version = register_checkpoint(
        world.store, run, checkpoint, "baseline", card=world.shards.card, evaluation=None, recipe=world.recipe
    )
    assert version.tags["architecture"] == "unet"
    assert "unet (segmentation_models_pytorch), `test_resnet`" in version.description
    image = np.random.default_rng(3).integers(0, 255, (1, 75, 50, 3)).astype(np.uint8)
    np.save(world.folder / "elsewhere" / "image.npy", image)
    result = world.load(
        "import json, mlflow, numpy as np, socket\n"
        "def refuse(*_): raise OSError('no network here')\n"
        "socket.socket.connect = refuse\n"
        "model = mlflow.pyfunc.load_model('models:/baseline@challenger')\n"
        "needs = open(mlflow.pyfunc.get_model_dependencies('models:/baseline@challenger')).read()\n"
        "print(json.dumps({'labels': model.predict(np.load('image.npy')).tolist(), 'needs': needs}))\n",
        HF_HUB_OFFLINE="1",
    )
    assert np.array_equal(
        np.array(result["labels"], np.uint8), Predictor(*load_bundle(checkpoint)).predict(image)
    )
    assert "segmentation-models-pytorch==" in result["needs"]


def test_two_versions_with_different_network_code_live_in_one_process(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = tmp_path / "d2ls"
    shutil.copytree(model_code.ROOT, changed, ignore=shutil.ignore_patterns("__pycache__"))
    network = changed / "models" / "d2ls.py"
    text = network.read_text()
    marker = "        return crop(output, height, width)\n"
    assert marker in text
    changed_code = "        return crop(output._replace(logits=output.logits.flip(1)), height, width)\n"
    network.write_text(text.replace(marker, changed_code))
    monkeypatch.setattr(model_code, "write_package", _from(changed))
    other = world.register(make_checkpoint(tmp_path / "other", world.shards, world.recipe, seed=0))
    if other.version == "1":  # the same weights: another run makes another version
        run = world.store.start_run(world.recipe, world.shards.card, "changed")
        other = register_checkpoint(
            world.store,
            run,
            world.checkpoint,
            NAME,
            card=world.shards.card,
            evaluation=None,
            recipe=world.recipe,
        )
    image = np.random.default_rng(2).integers(0, 255, (1, 64, 64, 3)).astype(np.uint8)
    np.save(world.folder / "elsewhere" / "image.npy", image)
    result = world.load(
        "import json, mlflow, numpy as np\n"
        "image = np.load('image.npy')\n"
        f"models = [mlflow.pyfunc.load_model('models:/{NAME}/' + v) for v in ('1', '{other.version}', '1')]\n"
        "print(json.dumps({'labels': [m.predict(image).tolist() for m in models],\n"
        "    'modules': sorted({type(m.unwrap_python_model().network).__module__ for m in models})}))\n"
    )
    first, second, again = (np.array(item) for item in result["labels"])
    assert len(result["modules"]) == 2
    assert np.array_equal(first, again)
    assert np.array_equal(second, 3 - first)
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", world.store.uri)
    beside = mlflow.pyfunc.load_model(
        f"models:/{NAME}/{other.version}"
    )  # with the checkout imported in this process
    assert np.array_equal(beside.predict(image), second)


def test_promotion_moves_the_alias_and_writes_the_reason(world: World) -> None:
    assert versions.champion(world.store, "d2ls-nobody") is None
    first = versions.promote(world.store, NAME, "1", "there was no champion")
    assert first.aliases == ("champion",)
    assert "Champion: there was no champion" in first.description
    run = world.store.start_run(world.recipe, world.shards.card, "next")
    other = make_checkpoint(world.folder / "next", world.shards, world.recipe, seed=5)
    second = register_checkpoint(
        world.store, run, other, NAME, card=world.shards.card, evaluation=None, recipe=world.recipe
    )
    assert second.aliases == ("challenger",)
    assert "**not evaluated**" in second.description
    versions.promote(world.store, NAME, second.version, "mIoU 0.6 beats 0.5")
    champion = versions.champion(world.store, NAME)
    assert champion is not None
    assert champion.version == second.version
    again = register_checkpoint(
        world.store, run, other, NAME, card=world.shards.card, evaluation=None, recipe=world.recipe
    )
    assert again.version == second.version, "the same weights of the same run"
    assert again.aliases == ("champion",), "the champion is not also a challenger"
    former = versions.by_version(world.store, NAME, "1")
    assert former.aliases == ()
    assert f"Succeeded as champion by version {second.version}: mIoU 0.6 beats 0.5" in former.description


@pytest.mark.parametrize(
    ("challenger", "champion", "expected"),
    [(0.5, None, True), (0.5, 0.4, True), (0.5, 0.5, False), (0.3, 0.4, False), (float("nan"), None, False),
     (0.1, float("nan"), True)],
)  # fmt: skip
def test_only_the_better_one_is_promoted(challenger: float, champion: float | None, expected: bool) -> None:
    decision, reason = should_promote(challenger, champion)
    assert decision is expected
    assert reason


def _from(root: Path) -> Any:
    original = model_code.write_package

    def write(folder: Path) -> str:
        return original(folder, root=root)

    return write

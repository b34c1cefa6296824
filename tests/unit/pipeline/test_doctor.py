import urllib.error
from dataclasses import replace

import pytest

from d2ls.errors import ConfigError, ShardError, StorageError, WeightsError
from d2ls.labels import ClassTable
from d2ls.shards import ShardSet
from pipeline import checks, diagnosis
from pipeline.config import load_recipe
from pipeline.training import build
from tests.inference_stubs import tiny_bundle
from tests.tiny_recipes import tiny_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("doctor")


def test_a_sound_recipe_passes(folder):
    findings = checks.quick(tiny_recipe(folder))
    assert [finding.status for finding in findings] == ["ok", "ok"]
    assert "11 train, 3 val, 2 test" in findings[0].text
    assert not list((folder / "runs").iterdir()), "the probe is gone"


def test_missing_shards_and_splits_are_named(folder, tmp_path):
    recipe = tiny_recipe(folder)
    with pytest.raises(ShardError, match="no finished shard set"):
        checks.quick(recipe.with_values({"shards.uri": str(tmp_path)}))
    with pytest.raises(ShardError, match="no split 'valid'"):
        checks.quick(recipe.with_values({"roles.val": "valid"}))


def test_class_weights_fit_the_training_split(folder):
    recipe = tiny_recipe(folder, loss__class_weights="inverse")
    card = ShardSet.open(recipe.shards.uri).card
    pixels = card.splits["train"].class_pixels
    result = checks.check_shards(recipe)[1].text
    weights = [float(part.rsplit(" ", 1)[1]) for part in result.removeprefix("class weights: ").split(", ")]
    assert [w * n for w, n in zip(weights, pixels, strict=True)] == pytest.approx(
        [sum(pixels) / 4] * 4, rel=0.01
    )
    assert list(build.loss(recipe, card)._class_weights) == pytest.approx(weights, rel=0.01)
    names = card.classes.names
    checks.quick(recipe.with_values({"loss.class_weights": {names[0]: 0.0}}))
    for wrong, message in (
        ({"boat": 2.0}, "no class is called boat"),
        (dict.fromkeys(names, 0.0), "one is above 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            checks.quick(recipe.with_values({"loss.class_weights": wrong}))


def test_a_distance_in_metres_needs_a_resolution(folder, monkeypatch):
    recipe = tiny_recipe(folder, evaluate__boundary_m=2.0)
    shards = ShardSet.open(recipe.shards.uri)
    for resolution in (None, 8.0):
        card = replace(shards.card, ground_sampling_distance=resolution)
        monkeypatch.setattr(ShardSet, "open", lambda uri, card=card: replace(shards, card=card))
        with pytest.raises(ConfigError, match=r"evaluate\.boundary_m=2"):
            checks.check_shards(recipe)


def test_roles_that_share_scenes_are_refused_unless_the_paper_has_it_so(folder):
    recipe = tiny_recipe(folder)
    shards = ShardSet.open(recipe.shards.uri)
    index = shards.index.set_column(2, "scene", [["same"] * len(shards.index)])
    shared = replace(shards, index=index)
    with pytest.raises(ConfigError, match=r"roles.train=train and roles.val=val share 1 scene.*too high"):
        checks.check_roles(recipe, shared)
    paper = replace(shared, card=replace(shards.card, protocol="paper"))
    assert [finding.status for finding in checks.check_roles(recipe, paper)][1:] == ["warning"] * 3


def test_storage_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"output_dir=.*file/below cannot be used.*set another output_dir"):
        checks.check_storage(str(tmp_path / "file" / "below"))


def test_a_password_in_a_location_is_a_finding():
    recipe = load_recipe("demo").with_values({"output_dir": "s3://AKIA:hush@bucket/x"})
    (*_, last) = diagnosis.examine(recipe)
    assert (last.what, last.status) == ("storage", "error")
    assert "hush" not in last.text


def test_a_network_that_cannot_be_built_is_found_before_the_start(folder, tmp_path, monkeypatch):
    recipe = tiny_recipe(folder)
    with pytest.raises(ConfigError, match="convnxt_tiny: timm knows no such backbone"):
        checks.quick(recipe.with_values({"model.backbone": "convnxt_tiny"}))

    with pytest.raises(WeightsError, match="nowhere: no such folder"):
        checks.quick(recipe.with_values({"model.init": str(tmp_path / "nowhere")}))
    other = tiny_bundle(tmp_path / "other", ClassTable.create(["a", "b"], [(1, 1, 1), (2, 2, 2)]))
    checks.quick(recipe.with_values({"model.init": str(other), "model.backbone": "test_convnext"}))
    with pytest.raises(WeightsError, match=r"model\.init: .*other has the backbone"):
        checks.quick(recipe.with_values({"model.init": str(other), "model.backbone": "resnet18"}))

    def refused(request, timeout):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refused)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, file: None)
    pretrained = recipe.with_values({"model.pretrained": True})
    with pytest.raises(WeightsError, match=r"no route to host.*model\.pretrained=false"):
        checks.quick(pretrained)
    checks.quick(
        pretrained.with_values({"cluster.address": "10.0.0.1:6379"})
    )  # its machines may have the weights


def test_every_problem_gets_a_line(folder, monkeypatch, capsys):
    recipe = tiny_recipe(folder, shards__uri=str(folder / "none"))
    monkeypatch.setattr(diagnosis, "check_cluster", lambda recipe: [checks.Finding("cluster", "ok", "two")])
    findings = {finding.what: finding for finding in diagnosis.examine(recipe)}
    assert findings["shards"].status == "error"
    assert findings["cluster"].line() == "ok      cluster     two"
    assert checks.Finding("node 10.0.0.1", "error", "lost").line() == "error   node 10.0.0.1 lost"
    assert findings["tracking"].status == "ok"
    assert "torch 2." in findings["versions"].text


def test_what_killed_processes_left_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("D2LS_STORAGE", str(tmp_path))
    left = [
        tmp_path / "tmp" / "d2ls.tmp-model-a",
        tmp_path / "runs" / "one" / "checkpoints" / "d2ls.tmp-checkpoint-b",
    ]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / "half").touch()
    (finding,) = diagnosis.check_leftovers(None)
    assert all(str(folder) in finding.text and not folder.exists() for folder in left)
    assert diagnosis.check_leftovers(None) == []

"""Models by name: errors for damaged descriptions; nothing is downloaded or left behind."""

import json
from pathlib import Path

import pytest
import timm

from d2ls.errors import WeightsError
from pipeline.models import fetch_model, load_model, load_predictor, unpacked
from tests.inference_stubs import model_info, tiny_bundle


@pytest.fixture
def model(tmp_path) -> Path:
    return tiny_bundle(tmp_path / "model", model_info().classes)


def edit(model: Path, change) -> None:
    values = json.loads((model / "model.json").read_text())
    change(values)
    (model / "model.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v["config"].update(num_classes=9), r"config\.num_classes is 9, but 4 are listed: ground"),
        (lambda v: v["classes"].pop(), r"config\.num_classes is 4, but 3 are listed"),
        (lambda v: v["config"].update(bands=4), r"config\.bands is 4, but 3 are listed: red"),
        (lambda v: v["config"].update(pretrained=True), r"config\.pretrained is True; .* remove the key"),
        (lambda v: v["config"].update(weights="a.pth"), r"config\.weights is 'a\.pth'"),
        (lambda v: v["config"].update(colour="red"), "describes no network.*'colour'"),
        (lambda v: v["config"].update(stages="many"), "describes no network"),
        (lambda v: v.update(colour="red"), r"unknown key\(s\) colour"),
        (lambda v: v.update(window=0), "window is 0"),
        (lambda v: v.update(dtype="int64"), "dtype is 'int64'; allowed are uint8"),
        (lambda v: v.update(ground_sampling_distance=-1), "ground_sampling_distance is -1"),
        (lambda v: v.update(temperature=0), "temperature is 0; it is a positive number"),
        (lambda v: v["normalization"]["mean"].pop(), r"normalization\.mean has 2 value\(s\) for 3 band"),
        (lambda v: v.update(config=[]), "must be mappings"),
        (lambda v: v.update(reading=[0]), r"reading is \[0\]"),
        (lambda v: v.update(reading={"nodata": "black"}), "reading is .*black"),
        (lambda v: v.pop("version"), "not the description of a model"),
        (lambda v: v.update(version=99), "model version 99"),
    ],
)
def test_a_wrong_description_names_the_model_that_was_asked_for(model, monkeypatch, change, words) -> None:
    monkeypatch.setattr(timm, "create_model", _no_hub(timm.create_model))
    edit(model, change)
    with pytest.raises(WeightsError, match=words) as caught:
        load_model(str(model))
    assert str(caught.value).startswith(str(model))
    with fetch_model(str(model)) as folder:
        files = {name: (folder / name).read_bytes() for name in ("model.json", "model.safetensors")}
    with unpacked(files) as folder, pytest.raises(WeightsError, match=r"^models:/a@champion: "):
        load_predictor(folder, where="models:/a@champion")


def _no_hub(create):
    def checked(*words, **options):
        assert not options.get("pretrained"), "asks the hub"
        return create(*words, **options)

    return checked


def test_deeply_nested_json_is_no_model(model) -> None:
    (model / "model.json").write_text("[" * 100_000)
    with pytest.raises(WeightsError, match="not the description of a model"):
        load_model(str(model))


@pytest.mark.parametrize("name", ["models:d2ls@champion", "Models:/d2ls@champion", "models:", "runs:abc"])
def test_a_registered_model_that_is_misspelt_is_no_storage(name: str) -> None:
    with pytest.raises(WeightsError, match="models:/NAME@ALIAS"), fetch_model(name):
        pass

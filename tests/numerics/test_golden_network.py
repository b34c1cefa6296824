"""The network computes the recorded numbers. Set D2LS_GOLDENS to a folder of goldens of the published code to
hold it to those too (a .json of names and shapes, a .npz of arrays and a recipe.py of weights)."""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from d2ls.models import build_model, load_published
from tests.named_weights import NORMALIZED, fill, named_tensor, relative_error

FOLDER = Path(__file__).parent / "goldens"
LIMIT = 4e-6
CASES = {
    "stages3_classes7": {"size": (40, 32), "num_classes": 7},
    "stages0_classes5_odd": {"size": (37, 50), "num_classes": 5, "stages": 0},
    "stages1_classes20": {"size": (32, 36), "num_classes": 20, "stages": 1},
    "static_dictionary": {"size": (32, 32), "num_classes": 4, "stages": 2, "dictionary": "static"},
    "no_dictionary": {"size": (32, 32), "num_classes": 4, "dictionary": "none"},
    "deepest_only": {"size": (32, 32), "num_classes": 4, "stages": 1, "aggregator": False},
}


def compute(size, **options):
    model = fill(build_model(backbone="convnext_atto", normalization=NORMALIZED, **options)).eval()
    with torch.no_grad():
        output = model(named_tensor("images", (2, 3, *size)), auxiliary=True)
    arrays = {"logits": output.logits[..., ::2, ::2]}
    if output.static_logits is not None:
        arrays["static_logits"] = output.static_logits[..., ::2, ::2]
    arrays |= {f"dictionary_{index}": item[..., ::8] for index, item in enumerate(output.dictionaries)}
    return {name: value.numpy() for name, value in arrays.items()}


@pytest.mark.parametrize("case", CASES)
def test_golden_network(case):
    result, path = compute(**CASES[case]), FOLDER / f"{case}.npz"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        np.savez_compressed(path, **result)
        pytest.fail(f"{path.name} was missing and has been written: look at it and commit it")
    expected = dict(np.load(path))
    assert result.keys() == expected.keys()
    assert {
        n: relative_error(result[n], expected[n])
        for n in expected
        if relative_error(result[n], expected[n]) > LIMIT
    } == {}


def foreign():
    folder = Path(os.environ.get("D2LS_GOLDENS", "/nonexistent"))
    return sorted(path.with_suffix("") for path in folder.glob("*.json") if path.with_suffix(".npz").exists())


@pytest.mark.parametrize("stem", foreign(), ids=lambda stem: stem.name)
def test_golden_published(stem):
    described, expected = (
        json.loads(stem.with_suffix(".json").read_text()),
        dict(np.load(stem.with_suffix(".npz"))),
    )
    recipe = _recipe(stem.parent)
    model = build_model(
        backbone=described["backbone"],
        num_classes=described["num_classes"],
        stages=described["stages"],
        embed_dim=described["embed_dim"],
        normalization=NORMALIZED,
    ).eval()
    load_published(
        model, {n: torch.from_numpy(recipe.weight(n, s)) for n, s in described["state_dict"].items()}
    )
    with torch.no_grad():
        result = _arrays(model, torch.from_numpy(recipe.normal("input", described["input_shape"])))
    errors = {name: relative_error(result[name], expected[name]) for name in expected}
    assert {name: error for name, error in errors.items() if error > LIMIT} == {}


def _arrays(model, images):
    from d2ls.losses import contrastive_ratio

    maps, output = model.backbone(images), model(images, auxiliary=True)
    fused = model.aggregator(maps)
    return {
        **{f"feature_{i}": torch.stack([f.mean(), f.std(), f.abs().max()]) for i, f in enumerate(maps)},
        "fused_features": fused,
        "mixing_weights": model.head.modulator(maps[-1]),
        "static_dictionary": output.static_dictionary,
        "dynamic_dictionary": output.dynamic_dictionary,
        "refined_dictionary": output.dictionaries[-1],
        "positional_encoding": model.head.position(*fused.shape[-2:]).permute(2, 0, 1),
        "dynamic_logits": output.logits,
        "static_logits": output.static_logits,
        "contrastive_ratio": contrastive_ratio(output.dynamic_dictionary),
    }


def _recipe(folder):
    spec = importlib.util.spec_from_file_location("golden_recipe", folder / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

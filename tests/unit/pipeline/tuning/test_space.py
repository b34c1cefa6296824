"""Search spaces: what is tried, in which order, and what is refused."""

import pytest

from d2ls.errors import ConfigError
from pipeline.config import apply_overrides, parse_recipe
from pipeline.tuning.space import (
    configurations,
    describe,
    final_recipe,
    in_vain,
    refuse_overridden,
    trial_key,
    trial_recipe,
)

BASE = {"name": "x", "data": {"source": "loveda"}, "shards": {"uri": "s"}}


def recipe(*overrides: str):
    return parse_recipe(apply_overrides(BASE, overrides))


def test_default_grid_is_stages_times_temperature():
    tried = configurations(recipe())
    assert len(tried) == 9
    assert {values["model.stages"] for values in tried} == {1, 2, 3}
    assert all(trial_recipe(recipe(), values).loss.contrastive == "infonce" for values in tried)


def test_conditional_key_is_left_out_and_repeats_vanish():
    tried = configurations(
        recipe(
            "sweep.overrides={}",
            "sweep.space.loss.contrastive={values: [none, infonce]}",
            "sweep.space.loss.temperature={values: [0.07, 0.2], when: {loss.contrastive: infonce}}",
        )
    )
    assert [values.get("loss.temperature") for values in tried] == [None, 0.07, 0.2]


def test_keys_of_a_loss_term_are_swept_where_it_has_a_weight():
    space = (
        "sweep.space.loss.focal_weight={values: [0, 1]}",
        "sweep.space.loss.focal_gamma={values: [1, 2]}",
        "sweep.space.loss.class_weights={values: [none, effective]}",
        "sweep.space.loss.effective_beta={values: [0.9, 0.99]}",
    )
    tried = configurations(recipe(*space))
    assert {(v["loss.focal_weight"], v.get("loss.focal_gamma")) for v in tried} == {(0, None), (1, 1), (1, 2)}
    assert {(v["loss.class_weights"], v.get("loss.effective_beta")) for v in tried} == {
        ("none", None), ("effective", 0.9), ("effective", 0.99),
    }  # fmt: skip
    vain = recipe("sweep.space.loss.focal_gamma={values: [1, 2]}")
    assert in_vain(vain, vain.sweep.space) == [
        "loss.focal_gamma has no effect in any trial: loss.focal_weight is 0.0, not more than 0"
    ]


def test_keys_without_effect_are_left_out_so_that_a_baseline_is_tried_once():
    tried = configurations(
        recipe(
            "sweep.overrides={loss.contrastive: none}",
            "sweep.space.model.stages={values: [1, 2]}",
            "sweep.space.model.architecture={values: [d2ls, unet]}",
            "sweep.space.model.dictionary={values: [dynamic, static, none]}",
            "sweep.space.loss.contrastive={values: [none, infonce]}",
            "sweep.space.loss.temperature={values: [0.1, 0.5]}",
        )
    )
    plain = {"model.architecture": "d2ls", "model.dictionary": "none"}
    assert {"model.architecture": "unet"} in tried
    assert plain in tried
    static = {"model.architecture": "d2ls", "model.dictionary": "static"}
    dynamic = {"model.architecture": "d2ls", "model.dictionary": "dynamic"}
    for stages in (1, 2):
        assert {**static, "model.stages": stages} in tried
        assert {**dynamic, "model.stages": stages, "loss.contrastive": "none"} in tried
        for temperature in (0.1, 0.5):
            contrast = {"loss.contrastive": "infonce", "loss.temperature": temperature}
            assert {**dynamic, "model.stages": stages, **contrast} in tried
    assert len(tried) == 2 + 2 * 4


def test_keys_in_vain_are_named():
    vain = recipe("model.dictionary=none", "loss.contrastive=none", "sweep.overrides={}")
    stages, temperature = in_vain(vain, vain.sweep.space)
    assert (
        stages == "model.stages has no effect in any trial: model.dictionary is none, not dynamic or static"
    )
    assert "loss.temperature has no effect in any trial: loss.contrastive is none" in temperature
    assert in_vain(vain, ["loss.contrastive", "train.epochs"]) == []
    (delta,) = in_vain(recipe("train.min_delta=0.01"), ["train.min_delta"])
    assert delta == "train.min_delta has no effect in any trial: train.patience is None, not more than 0"
    patient = recipe("train.min_delta=0.01", "sweep.trial_overrides={train.patience: 2}")
    assert in_vain(patient, ["train.min_delta"]) == []
    both = recipe("sweep.space.model.architecture={values: [d2ls, unet]}")
    for fine in (recipe(), both):
        assert in_vain(fine, fine.sweep.space) == []


def test_random_is_seeded_bounded_and_within_range():
    text = [
        "sweep.search=random",
        "sweep.num_trials=5",
        "sweep.space={train.optimizer.lr: {low: 1e-5, high: 1e-2, log: true}}",
    ]
    first, again, other = (configurations(recipe(*text, f"seed={seed}")) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == 5
    assert all(1e-5 <= values["train.optimizer.lr"] <= 1e-2 for values in first)


def test_what_the_sweep_fixes_cannot_be_asked_for_otherwise_in_silence():
    asked = ["loss.contrastive=ratio"]
    with pytest.raises(
        ConfigError, match=r"sweep.overrides sets infonce .*sweep\.overrides\.loss\.contrastive=ratio"
    ):
        refuse_overridden(recipe(*asked), asked)
    for way_out in ("sweep.overrides.loss.contrastive=ratio", "sweep.overrides={}"):
        refuse_overridden(recipe(*asked, way_out), [*asked, way_out])
    refuse_overridden(
        recipe("loss.contrastive=infonce"), ["loss.contrastive=infonce", "sweep.num_trials=null"]
    )


def test_trial_keys_hold_in_trials_alone():
    swept = recipe("sweep.trial_overrides={train.epochs: 2}", "train.epochs=9")
    values = configurations(swept)[0]
    assert trial_recipe(swept, values).train.epochs == 2
    assert final_recipe(swept, values).train.epochs == 9


LISTED = ("seed", "train.epochs", "train.evaluate_every")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sweep.space={model.stagse: {values: [1]}}"], "model.stages"),
        (["sweep.space={model.stages: {values: [1, 9]}}"], "less than or equal to 6"),
        (["sweep.space={train.global_batch_size: {values: [4, 8]}}"], "contrastive"),
        (["sweep.space={sweep.final: {values: [true]}}"], "describes the sweep"),
        (["sweep.overrides={loss.contrasive: none}"], "loss.contrastive"),
        (["sweep.trial_overrides={train.epochs: -2}"], r"(?s)sweep\.trial_overrides: .*train\.epochs"),
        (["sweep.search=random", "sweep.num_trials=1000000000"], "less than or equal to 10000"),
        (
            [f"sweep.space={{{', '.join(f'{key}: {{values: {list(range(1, 50))}}}' for key in LISTED)}}}"],
            r"117,649 combinations.*search: random",
        ),
        (
            [
                "sweep.space.model.stages={values: [1], when: {seed: 1}}",
                "sweep.space.seed={values: [1], when: {model.stages: 1}}",
            ],
            "circle",
        ),
    ],
)
def test_wrong_space_is_refused_before_anything_runs(overrides, message):
    with pytest.raises(ConfigError, match=message):
        configurations(recipe(*overrides))


def test_names_come_from_content():
    assert trial_key({"a": 1, "b": 2}) == trial_key({"b": 2, "a": 1}) != trial_key({"a": 1, "b": 3})
    assert describe({"model.stages": 2, "loss.temperature": 0.07}) == "stages=2 temperature=0.07"

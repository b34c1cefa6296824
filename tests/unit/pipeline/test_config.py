"""Recipes: accepted values, and the messages for refused ones."""

import math
from pathlib import Path
from typing import get_args

import pytest
import timm

from d2ls.errors import ConfigError, StorageError
from d2ls.models import BASELINES
from pipeline import cli
from pipeline.config import apply_overrides, load_recipe, parse_recipe, recipe_names
from pipeline.config.model import Architecture
from pipeline.config.recipe import RECIPES, override_keys
from pipeline.tuning.space import configurations, in_vain

BASE = {"name": "x", "data": {"source": "loveda"}, "shards": {"uri": "s"}}


def parse(*overrides: str):
    return parse_recipe(apply_overrides(BASE, overrides))


@pytest.mark.parametrize(
    ("override", "key", "hint"),
    [
        ("train.epocs=3", "train.epocs", "Did you mean epochs"),
        ("epochs=3", "epochs", "Did you mean train.epochs"),
        ("modle.stages=2", "modle", "Did you mean model"),
        ("train.epochs=many", "train.epochs", "integer"),
        ("train.epochs=2.5", "train.epochs", "integer"),
        ("train.epochs=null", "train", "give one of epochs and steps, neither given"),
        ("train={epochs: 2, steps: 9}", "train", "both given; null takes one back"),
        ("train.time_budget=soon", "train.time_budget", "such as 30m, 2h or 1h30m"),
        ("train.time_budget=1.2.3h", "train.time_budget", "a duration above 0"),
        ("train.time_budget=0", "train.time_budget", "a number is minutes"),
        ("train.epochs=0", "train.epochs", "greater than or equal to 1"),
        ("train.optimizer.lr=-1", "train.optimizer.lr", "greater than 0"),
        ("model.stages=9", "model.stages", "less than or equal to 6"),
        ("model.pretrained=perhaps", "model.pretrained", "boolean"),
        ("model.weights_by_order=true", "model.weights_by_order", "model.weights"),
        ("loss.contrastive=foo", "loss.contrastive", "'infonce'"),
        ("cluster.min_workers=4", "cluster", "max_workers together"),
        ("cluster.workers=1..4", "cluster.workers", "min_workers and max_workers"),
        ("cluster={workers: 2, min_workers: 1, max_workers: 4}", "cluster", "null takes one back"),
        ("cluster={min_workers: 4, max_workers: 1}", "cluster", "more than max_workers"),
        ("Train.epochs=3", "Train", "Did you mean train"),
        ("train.Epochs=3", "train.Epochs", "Did you mean epochs"),
        ("cluster.max-workers=3", "cluster.max-workers", "Did you mean max_workers"),
        ("name=!!int x", "name", "'x' looks like a value of the type int and is none"),
        ("seed=0b_", "seed", "'0b_' looks like a value of the type int and is none"),
        ("name=a\0b", "name", "not a readable YAML text"),
        ("train.optimizer.weight_decay=.inf", "train.optimizer.weight_decay", "finite"),
        ("shards.target_mb=.inf", "shards.target_mb", "finite"),
        ("cluster.workers=64", "cluster.workers", "train.global_batch_size"),
        ("roles.test=val", "roles", "too high"),
        ("roles.val=train", "roles", "train"),
        ("model.dictionary=static", "loss.contrastive", "ratio"),
        ("loss={cross_entropy_weight: 0, dice_weight: 0}", "loss", "lovasz_weight must be above 0"),
        ("loss.lovasz_weight=-1", "loss.lovasz_weight", "greater than or equal to 0"),
        ("loss.class_weights={road: -1}", "loss.class_weights.road", "greater than or equal to 0"),
        ("loss.class_weights=inverted", "loss.class_weights", "none, inverse, effective, or a mapping"),
        ("sweep.search=random", "sweep", "trials"),
        ("sweep.space={}", "sweep", "empty"),
        ("sweep.space.model.stages={low: 3, high: 1}", "model.stages", "low < high"),
        ("name=Bad Name", "name", "pattern"),
    ],
)
def test_wrong_value_names_key_and_way_out(override, key, hint):
    with pytest.raises(ConfigError) as caught:
        parse(override)
    assert key in str(caught.value)
    assert hint in str(caught.value)


def test_a_baseline_needs_no_dictionary_terms_and_says_what_has_no_effect():
    recipe = parse("model.architecture=unet", "loss.contrastive=infonce")
    warnings = recipe.without_effect(["model.stages", "loss.temperature", "train.epochs"])
    assert warnings == [
        "model.stages has no effect: model.architecture is unet, it counts with d2ls",
        "loss.temperature has no effect: model.architecture is unet, it counts with d2ls",
    ]
    assert parse("loss.contrastive=infonce").without_effect(["loss.temperature", "model.stages"]) == []
    assert set(get_args(Architecture)) == {"d2ls", *BASELINES}


def test_keys_of_a_term_have_no_effect_where_it_is_off():
    warnings = parse().without_effect(["loss.focal_gamma", "loss.boundary_px", "loss.dice_smooth"])
    assert warnings == [
        "loss.focal_gamma has no effect: loss.focal_weight is 0.0, it counts with more than 0",
        "loss.boundary_px has no effect: loss.boundary_factor is 1.0, it counts with more than 1",
    ]


def test_class_weights_by_name_are_one_key_and_name_classes_that_exist():
    recipe = parse("loss.class_weights.road=2", "loss.class_weights.tree=0.5")
    assert recipe.loss.class_weights == {"road": 2.0, "tree": 0.5}
    fewer = parse("loss.class_weights={road: 0}")
    assert "loss.class_weights" in fewer.changes_since(recipe, resuming="training")[0]
    with pytest.raises(ConfigError, match=r"no class is called rode; the classes are background, building"):
        load_recipe("own", ["loss.class_weights={rode: 2}"])


def test_commands_warn_of_overrides_without_effect(capsys: pytest.CaptureFixture[str]):
    overrides = ["model.dictionary=none", "loss.contrastive=none", "model.stages=2", "train.epochs=3"]
    cli.warn(parse(*overrides).without_effect(override_keys(overrides)))
    warnings = capsys.readouterr().err
    why = "model.dictionary is none, it counts with dynamic or static"
    assert warnings == f"warning: model.stages has no effect: {why}\n"


def test_an_override_takes_its_value_from_a_file(tmp_path: Path):
    file = tmp_path / "search.yaml"
    file.write_text("space: {model.stages: {values: [2, 4]}}\nfinal: false\n")
    recipe = parse(f"sweep=@{file}", "sweep.trial_overrides.train.epochs=2")
    assert recipe.sweep.space["model.stages"].values == (2, 4)
    assert recipe.sweep.trial_overrides == {"train.epochs": 2}
    with pytest.raises(ConfigError, match=r"sweep=@.*nowhere\.yaml"):
        parse("sweep=@nowhere.yaml")


@pytest.mark.parametrize("file", sorted((RECIPES / "sweeps").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_search_that_ships_fits_every_recipe(file: Path):
    for name in recipe_names():
        recipe = load_recipe(name, [f"sweep=@{file}"])
        assert len(configurations(recipe)) > 1
        assert in_vain(recipe, recipe.sweep.space) == []


def test_a_file_of_overrides_sets_its_keys_and_no_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "more.yaml"
    file.write_text("model: {stages: 2, backbone: 'on'}\ntrain: {optimizer: {lr: 1.0e-3}}\n")
    recipe = parse("model.stages=4", "model.drop_path=0.2", f"@{file}", "train.optimizer.lr=2e-3")
    assert (recipe.model.stages, recipe.model.drop_path, recipe.model.backbone) == (2, 0.2, "on")
    assert recipe.train.optimizer.lr == pytest.approx(2e-3)
    arguments = cli.parser("pipeline.sweep", "", "")
    cli.add_recipe(arguments, default="demo")
    given = arguments.parse_args([f"@{file}", "seed=1"])
    assert given.recipe == "demo"
    assert given.overrides[0] == "model.stages=2"
    assert given.overrides[-1] == "seed=1"
    with pytest.raises(ConfigError, match=r"'@nowhere\.yaml'.*cannot be read"):
        parse("@nowhere.yaml")
    file.write_text("- 1\n")
    with pytest.raises(ConfigError, match="no mapping"):
        parse(f"@{file}")


@pytest.mark.parametrize("file", sorted((RECIPES / "encoders").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_encoder_that_ships_fits_every_recipe(file: Path):
    for name in recipe_names():
        recipe = load_recipe(name, [f"@recipes/encoders/{file.name}"])
        assert recipe.model.backbone in timm.list_pretrained()
        assert recipe.without_effect(["model.drop_path", "train.optimizer.layer_decay"]) == []


@pytest.mark.parametrize("override", ["train.epochs", "=3", "train.epochs={"])
def test_override_that_is_no_override(override):
    with pytest.raises(ConfigError, match="override"):
        parse(override)


def test_all_wrong_values_are_listed_at_once():
    with pytest.raises(ConfigError, match="2 wrong") as caught:
        parse("train.epochs=x", "model.stages=7")
    assert "train.epochs" in str(caught.value)
    assert "model.stages" in str(caught.value)


def test_overrides_are_typed_as_yaml():
    recipe = parse(
        "train.optimizer.lr=1e-3",
        "loader.augmentation.scale=null",
        "cluster={min_workers: 1, max_workers: 4}",
    )
    assert recipe.train.optimizer.lr == pytest.approx(1e-3)
    assert recipe.loader.augmentation.scale is None
    assert recipe.cluster.worker_range == (1, 4)


def test_swept_key_with_dots_is_one_key():
    recipe = parse(
        "sweep.space.train.optimizer.lr={values: [1e-3, 1e-4]}", "sweep.overrides.loss.contrastive=none"
    )
    assert recipe.sweep.space["train.optimizer.lr"].values == (1e-3, 1e-4)
    assert recipe.sweep.overrides["loss.contrastive"] == "none"


def test_resolved_recipe_reads_back_to_the_same_value(tmp_path: Path):
    recipe = parse("train.epochs=3")
    file = tmp_path / "resolved.yaml"
    file.write_text(recipe.to_yaml())
    again = load_recipe(file)
    assert again == recipe
    assert again.digest() == recipe.digest()
    assert again.digest() != parse("train.epochs=4").digest()


def test_a_length_in_steps_takes_the_place_of_the_default():
    assert (parse().train.length, parse("train.epochs=1").train.length) == ("30 epochs", "1 epoch")
    train = parse("train.steps=500").train
    assert (train.epochs, train.length) == (None, "500 steps")
    assert parse("train.epochs=9", "train.epochs=null", "train.steps=500").train == train
    with pytest.raises(ConfigError, match="both given"):
        parse().with_values({"train.steps": 500})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30m", 1800),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1.5 h", 5400),
        ("90s", 90),
        ("45 min", 2700),
        ("10", 600),
    ],
)
def test_a_time_budget_is_a_duration(text, seconds):
    assert parse(f"train.time_budget={text}").train.time_budget_seconds == seconds


def test_the_length_of_a_training_is_kept_on_resume_but_not_what_ends_it_early():
    before = parse()
    after = parse("train.steps=9")
    assert after.changes_since(before, resuming="training")
    assert after.digest() != before.digest()
    for key, value in {"patience": 3, "min_delta": 0.1, "time_budget": "2h"}.items():
        changed = parse(f"train.{key}={value}")
        assert changed.digest() == before.digest()
        assert changed.changes_since(before, resuming="training") == []
        assert changed.changes_since(before, resuming="sweep") == [
            f"train.{key} was {getattr(before.train, key)!r}, is {value!r}"
        ]


def test_with_values_validates_again():
    recipe = parse()
    assert recipe.with_values({"model.stages": 1}).model.stages == 1
    with pytest.raises(ConfigError, match="stages"):
        recipe.with_values({"model.stages": 99})


def test_missing_and_broken_files(tmp_path: Path):
    with pytest.raises(ConfigError, match="no such recipe"):
        load_recipe(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1\n")
    with pytest.raises(ConfigError, match="not a readable YAML"):
        load_recipe(broken)
    broken.write_text("- 1\n")
    with pytest.raises(ConfigError, match="mapping"):
        load_recipe(broken)
    with pytest.raises(ConfigError, match=r"not a readable file.*too long"):
        load_recipe("x" * 5000)
    broken.write_text("name: a\nseed: 1\nname: b\n")
    with pytest.raises(ConfigError, match="twice"):
        load_recipe(broken)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_that_ships_loads(name: str):
    recipe = load_recipe(name)
    assert recipe.description
    assert recipe.flat()["name"] == recipe.name


def test_a_recipe_with_a_default_may_be_left_out_before_overrides():
    arguments = cli.parser("pipeline.sweep", "", "")
    cli.add_recipe(arguments, default="demo")
    given = arguments.parse_args(["--", "train.epochs=3", "seed=1"])
    assert (given.recipe, given.overrides) == ("demo", ["train.epochs=3", "seed=1"])
    long = f"description={'x' * 5000}"
    assert arguments.parse_args([long]).overrides == [long]
    given = arguments.parse_args(["loveda", "seed=1"])
    assert (given.recipe, given.overrides) == ("loveda", ["seed=1"])


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
MERGES = "a0: &a0 {k: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "aliases .* expand to"),
        (MERGES, "aliases .* expand to"),
        ("a: &a [*a]\n", "contains itself"),
        ("a: " + "[" * 5000, "not a readable YAML|nested too deeply"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("name: " + "x" * 2_000_000, "characters of YAML"),
        ("[1]: 2", "key must be a plain value|not a readable YAML"),
    ],
)
def test_a_small_text_never_expands_without_end(tmp_path: Path, text: str, words: str):
    file = tmp_path / "bomb.yaml"
    file.write_text(text)
    for read in (lambda: load_recipe(file), lambda: parse(f"data=@{file}")):
        with pytest.raises(ConfigError, match=words) as caught:
            read()
        assert "bomb.yaml" in str(caught.value)


def test_nan_may_mark_pixels_without_data():
    values = {"data.custom.nodata": float("nan")}
    assert math.isnan(load_recipe("own").with_values(values).data.custom.nodata)


def test_dates_are_text():
    assert parse("description=2026-01-05").description == "2026-01-05"
    assert parse("description=2026-13-45").description == "2026-13-45"


def test_anchors_and_aliases_are_read(tmp_path: Path):
    file = tmp_path / "search.yaml"
    file.write_text("space: {model.stages: &v {values: [2, 4]}, model.heads: *v}\n")
    assert parse(f"sweep=@{file}").sweep.space["model.heads"].values == (2, 4)
    file.write_text("space: {model.stages: &v {values: [2, 4]}, model.heads: {<<: *v, values: [2, 8]}}\n")
    assert parse(f"sweep=@{file}").sweep.space["model.heads"].values == (2, 8)


def test_a_missing_recipe_is_all_that_is_missing(capsys: pytest.CaptureFixture[str]):
    arguments = cli.parser("pipeline.train", "", "")
    cli.add_recipe(arguments)
    with pytest.raises(SystemExit, match="2"):
        arguments.parse_args([])
    assert capsys.readouterr().err.endswith("required: RECIPE\n")


@pytest.mark.parametrize(
    ("name", "training", "crop", "changes"),
    [
        ("loveda", (30, 8, 8e-5), (512, (0.75, 1.5), 0.75), (0.5, 0, 0)),
        ("uavid", (45, 4, 1e-4), (1024, None, None), (0, 0.25, 0.5)),
        ("potsdam", (45, 4, 1e-4), (768, (0.75, 1.5), 0.75), (0.25, 0, 0)),
        ("vaihingen", (45, 4, 1e-4), (512, (0.5, 1.5), 0.5), (0.5, 0, 0)),
        ("cloud", (100, 4, 1e-4), (512, None, None), (0, 0.25, 0.5)),
        ("grass", (100, 4, 1e-4), (256, None, None), (0, 0.25, 0.5)),
    ],
)
def test_recipes_train_as_published(name, training, crop, changes):
    recipe = load_recipe(name)
    train, augmentation = recipe.train, recipe.loader.augmentation
    assert (train.epochs, train.global_batch_size, train.optimizer.lr) == training
    assert (augmentation.crop_size, augmentation.scale, augmentation.max_class_fraction) == crop
    assert (augmentation.quarter_turns, augmentation.brightness_contrast, augmentation.sharpen) == changes
    assert (augmentation.horizontal_flip, augmentation.vertical_flip, augmentation.mosaic) == (0.5, 0.5, 0.25)


@pytest.mark.parametrize("key", ["shards.uri", "output_dir", "data.root"])
def test_a_recipe_with_a_password_in_a_location_starts_nothing(key):
    recipe = load_recipe("demo").with_values({key: "s3://AKIA:hush@bucket/x"})
    with pytest.raises(StorageError, match=r"s3://\*\*\*"):
        recipe.anchored()

"""Old recipe keys and options: refused, with the new name."""

import re

import pytest

from d2ls.errors import ConfigError
from pipeline import renamed
from pipeline.cli import parser
from pipeline.config import Recipe, apply_overrides, parse_recipe
from pipeline.config.base import known_keys
from pipeline.tuning.space import configurations

BASE = {"name": "x", "data": {"source": "loveda"}, "shards": {"uri": "s"}}
OLD_CLASS = (
    "{images: a, masks: b, split: {lists: {train: t}}, classes: [{name: a, color: [0, 0, 0], codes: [1]}]}"
)


def parse(*overrides):
    return parse_recipe(apply_overrides(BASE, overrides))


def test_old_keys_are_gone_and_new_ones_are_there():
    known = [*known_keys(Recipe), "data.custom.classes.label_values"]
    for old, new in renamed.KEYS.items():
        assert not [key for key in known if f"{key}.".startswith(f"{old}.")]
        assert [key for key in known if f"{key}.".startswith(f"{new}.")]


@pytest.mark.parametrize(("old", "new"), renamed.KEYS.items())
def test_an_old_key_is_refused_with_its_new_name(old, new):
    override = f"data.custom={OLD_CLASS}" if old.endswith("codes") else f"{old}=1"
    with pytest.raises(ConfigError, match=rf"{re.escape(old.rpartition('.')[2])}: is now {re.escape(new)}"):
        parse(override)


def test_an_old_key_is_refused_below_free_mappings_too():
    for override in (
        "sweep.space={train.global_batch: {values: [4]}}",
        "sweep.trial_overrides={train.global_batch: 4}",
    ):
        with pytest.raises(ConfigError, match=r"train\.global_batch: is now train\.global_batch_size"):
            configurations(parse("sweep.overrides={}", override))
    with pytest.raises(ConfigError, match=r"sweep\.trial: is now sweep\.trial_overrides"):
        parse("sweep.trial.train.epochs=3")


@pytest.mark.parametrize(("old", "new"), renamed.OPTIONS.items())
def test_an_old_option_is_refused_with_its_new_name(capsys, old, new):
    command = parser("pipeline.test", "", "")
    command.add_argument(new)
    for words in ([old, "1"], [f"{old}=1"]):
        with pytest.raises(SystemExit):
            command.parse_args(words)
        assert f"{old} is now {new}" in capsys.readouterr().err

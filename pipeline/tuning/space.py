"""The configurations of a sweep: pure functions from a search space to lists of key values.

A configuration is a dictionary of dotted recipe keys. A key appears only where it has an effect (`config.model.NEEDS`)
and where its own condition (`when`) holds. So configurations that differ only in keys without effect are tried once.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from d2ls.errors import ConfigError
from pipeline.config import Recipe
from pipeline.config.base import Scalar
from pipeline.config.model import NEEDS, unmet
from pipeline.config.recipe import check_key, override_keys
from pipeline.config.sweep import Axis

Values = dict[str, Scalar]

BATCH_KEYS = ("train.global_batch_size", "train.micro_batch_size", "cluster.workers")
"""Keys that change the batch over which Dice and the contrastive term are computed."""


def base_recipe(recipe: Recipe) -> Recipe:
    """Returns the recipe with the sweep's overrides, which all trials share."""
    return recipe.with_values(recipe.sweep.overrides, where="sweep.overrides")


def trial_recipe(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Returns the complete recipe of one trial."""
    return recipe.with_values(
        {**recipe.sweep.overrides, **recipe.sweep.trial_overrides, **values},
        where=f"trial {dict(values)}" if values else "sweep.trial_overrides",
    )


def final_recipe(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Returns the complete recipe of the final training: the best values at the recipe's own length."""
    return recipe.with_values({**recipe.sweep.overrides, **values}, where=f"final training {dict(values)}")


def configurations(recipe: Recipe) -> list[Values]:
    """Lists the configurations of a grid or a random search, without repeats, each a valid recipe.

    Raises:
        ConfigError: an unknown key, an impossible combination, or trials whose losses could not be compared.
    """
    check_space(recipe)
    flat = base_recipe(recipe).flat()
    if recipe.sweep.search == "grid":
        candidates: Iterator[Values] = _grid(recipe.sweep.space, flat)
    else:
        generator = np.random.default_rng(recipe.seed)
        candidates = (
            sample(recipe.sweep.space, flat, generator) for _ in range(50 * (recipe.sweep.num_trials or 1))
        )
    chosen: dict[str, Values] = {}
    for values in candidates:
        chosen.setdefault(trial_key(values), values)
        if len(chosen) == recipe.sweep.num_trials:
            break
    for values in chosen.values():
        trial_recipe(recipe, values)
    return list(chosen.values())


def check_space(recipe: Recipe) -> None:
    """Refuses search spaces with unknown keys or with trials that cannot be compared.

    Raises:
        ConfigError: names the key.
    """
    space = recipe.sweep.space
    for key in (*space, *recipe.sweep.overrides, *recipe.sweep.trial_overrides):
        check_key(key)
        if key.startswith("sweep."):
            raise ConfigError(f"sweep: {key} cannot be swept, it describes the sweep itself")
    contrastive = base_recipe(recipe).loss.contrastive != "none" or "loss.contrastive" in space
    trial_recipe(recipe, {})  # names wrong values of trial_overrides, after those of overrides
    swept = [key for key in BATCH_KEYS if key in space]
    if contrastive and swept:
        raise ConfigError(
            f"sweep.space: {swept[0]} changes the batch over which the contrastive term is taken, so trials could not "
            "be compared by it. Fix the key, or set loss.contrastive=none"
        )
    for key, axis in space.items():
        for other in axis.when or {}:
            check_key(other)
            if other == key:
                raise ConfigError(f"sweep.space.{key}.when: a key cannot depend on itself")


def refuse_overridden(recipe: Recipe, overrides: Iterable[str]) -> None:
    """Refuses `key.sub=value` strings that `sweep.overrides` would silently undo.

    Raises:
        ConfigError: names the key, and how to set it.
    """
    flat = recipe.flat()
    for key in override_keys(overrides):
        fixed = recipe.sweep.overrides.get(key, flat.get(key))
        if fixed != flat.get(key):
            raise ConfigError(
                f"{key}={flat[key]}: sweep.overrides sets {fixed} in all trials and the final training; "
                f"set sweep.overrides.{key}={flat[key]}, or sweep.overrides={{}} for the recipe's own values"
            )


def in_vain(recipe: Recipe, keys: Iterable[str]) -> list[str]:
    """Returns a sentence for each of some dotted keys that has an effect in no configuration, with the reason."""
    space, flat, of_trials = recipe.sweep.space, base_recipe(recipe).flat(), trial_recipe(recipe, {}).flat()

    def reason(key: str) -> str | None:
        if key not in NEEDS:
            return None
        needed, allowed = NEEDS[key]
        axis = space.get(needed)
        possible = {flat[needed], of_trials[needed]} if axis is None else axis.values or ()
        if any(value in allowed for value in possible):
            return reason(needed)
        return f"{needed} is {' or '.join(map(str, possible))}, not {' or '.join(map(str, allowed))}"

    # Switching off what has no effect is no mistake.
    chosen = [key for key in keys if key in space or flat.get(key) not in ("none", False)]
    return [f"{key} has no effect in any trial: {why}" for key in chosen if (why := reason(key))]


def sample(space: Mapping[str, Axis], flat: Mapping[str, Any], generator: np.random.Generator) -> Values:
    """Draws one configuration at random."""
    return resolve(space, flat, lambda _, axis: _draw(axis, generator))


def resolve(
    space: Mapping[str, Axis], flat: Mapping[str, Any], choose: Callable[[str, Axis], Scalar]
) -> Values:
    """Chooses a value for every key that applies; looks conditions up in the choices, then in `flat`."""
    values: Values = {}

    def value_of(key: str) -> Any:
        return values.get(key, flat.get(key))

    for key, axis in _ordered(space):
        conditions = (axis.when or {}).items()
        if not unmet(key, value_of) and all(value_of(other) == value for other, value in conditions):
            values[key] = choose(key, axis)
    return values


def trial_key(values: Mapping[str, Any]) -> str:
    """Returns the name of a configuration, a hash of its values."""
    return hashlib.sha256(json.dumps(dict(values), sort_keys=True).encode()).hexdigest()[:8]


def describe(values: Mapping[str, Any]) -> str:
    """Returns a configuration as short text: `stages=2 temperature=0.07`."""
    return (
        " ".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in values.items())
        or "recipe as it stands"
    )


def _grid(space: Mapping[str, Axis], flat: Mapping[str, Any]) -> Iterator[Values]:
    keys = [key for key, _ in _ordered(space)]
    for combination in itertools.product(*(space[key].values or () for key in keys)):
        chosen = dict(zip(keys, combination, strict=True))
        yield resolve(space, flat, lambda key, _, chosen=chosen: chosen[key])  # type: ignore[misc]


def _ordered(space: Mapping[str, Axis]) -> list[tuple[str, Axis]]:
    """Orders keys so that each comes after the keys in its condition."""
    pending = dict(space)
    ordered: list[tuple[str, Axis]] = []
    while pending:
        ready = [key for key, axis in pending.items() if not _depends_on(key, axis) & set(pending)]
        if not ready:
            raise ConfigError(
                f"sweep.space: the `when` conditions of {list(pending)} depend on each other in a circle"
            )
        ordered.extend((key, pending.pop(key)) for key in ready)
    return ordered


def _depends_on(key: str, axis: Axis) -> set[str]:
    """Returns the keys that decide whether an axis applies."""
    keys = set(axis.when or {})
    while key in NEEDS:
        key = NEEDS[key][0]
        keys.add(key)
    return keys


def _draw(axis: Axis, generator: np.random.Generator) -> Scalar:
    if axis.values is not None:
        return axis.values[int(generator.integers(len(axis.values)))]
    low, high = float(axis.low or 0), float(axis.high or 0)
    if axis.log:
        value = float(np.exp(generator.uniform(np.log(low), np.log(high))))
    else:
        value = float(generator.uniform(low, high))
    return round(value) if axis.integer else float(f"{value:.4g}")

"""Dividing scenes over splits by shares; a scene is never divided."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from d2ls.errors import ConfigError
from sharding.sources.base import Scene


def draw(units: Sequence[str], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """Divides scenes by shares: shuffled by the seed, cut at rounded shares, at least one a split.

    Args:
        units: scene names, in a fixed order.
        fractions: split to share; the shares add up to 1.
        seed: another seed, another division.

    Returns:
        Scene to split.

    Raises:
        ConfigError: fewer scenes than splits.
    """
    if len(units) < len(fractions):
        raise ConfigError(
            f"{len(units)} scene(s) cannot fill {len(fractions)} splits ({', '.join(fractions)}): "
            "scenes are never divided. Name fewer splits, or let data.custom.scene make smaller scenes."
        )
    order = list(units)
    random.Random(seed).shuffle(order)
    counts = {name: max(1, int(share * len(order))) for name, share in fractions.items()}
    while (rest := len(order) - sum(counts.values())) != 0:
        change = 1 if rest > 0 else -1
        allowed = [name for name in counts if counts[name] + change >= 1]
        most = max(allowed, key=lambda name: change * (fractions[name] * len(order) - counts[name]))
        counts[most] += change
    splits = [name for name, count in counts.items() for _ in range(count)]
    return dict(zip(order, splits, strict=True))


@dataclass(frozen=True)
class HeldOut:
    """A share of the training scenes that is kept out of training and selects: the split `select`.

    For data sets whose test labels are hidden: the official validation part is then free to be reported.

    Attributes:
        fraction: share of the units, above 0 and below 1.
        seed: another seed, another choice.
    """

    fraction: float
    seed: int = 42

    @classmethod
    def take(cls, options: dict[str, Any]) -> Self | None:
        """Takes the option `select` out of a source's options; None where it is not given.

        Raises:
            ConfigError: not `{fraction: ..., seed: ...}`.
        """
        value = options.pop("select", None)
        if value is None:
            return None
        share = value.get("fraction") if isinstance(value, Mapping) else None
        if not isinstance(share, float) or not 0 < share < 1 or set(value) - {"fraction", "seed"}:
            raise ConfigError(
                f"data.options.select: {value!r} is not possible; allowed: {{fraction: 0.1, seed: 42}}"
            )
        return cls(share, int(value.get("seed", 42)))

    def apply(self, scenes: Iterable[Scene], unit: Callable[[Scene], str]) -> Iterator[Scene]:
        """Yields all scenes, some of `train` as `select`; what shares a unit stays together."""
        scenes = list(scenes)
        units = list(dict.fromkeys(unit(scene) for scene in scenes if scene.split == "train"))
        shares = {"train": 1 - self.fraction, "select": self.fraction}
        splits = draw(units, shares, self.seed) if units else {}
        for scene in scenes:
            yield replace(scene, split=splits[unit(scene)]) if scene.split == "train" else scene

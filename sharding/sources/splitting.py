"""Dividing scenes over splits by shares; a scene is never divided."""

import random
from collections.abc import Mapping, Sequence

from d2ls.errors import ConfigError


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

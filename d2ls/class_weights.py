"""Weights of the classes in the loss, given by name or computed from pixel counts. Plain arithmetic, without torch."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from d2ls.errors import ConfigError

Frequency = Literal["none", "inverse", "effective"]


def class_weights(
    choice: Frequency | Mapping[str, float],
    names: Sequence[str],
    class_pixels: Sequence[int],
    *,
    beta: float | None = None,
) -> tuple[float, ...] | None:
    """Returns the weight of each class.

    Args:
        choice: `none`; `inverse`: one over the number of pixels; `effective`: one over the effective number of pixels,
            (1 - beta^n) / (1 - beta); or weights by class name, 1 for classes that are not named.
        names: of the K classes.
        class_pixels: K pixel counts of the training split.
        beta: of `effective`; None: 1 - 1 / (mean number of pixels of a class).

    Returns:
        K weights; None for `none`. Computed weights have a mean of 1 over the training pixels.

    Raises:
        ConfigError: a class that does not exist, a weight below 0, no weight above 0, or a class without pixels where
            weights follow from pixels.

    Source: Cui, Jia, Lin, Song, Belongie, "Class-Balanced Loss Based on Effective Number of Samples" (2019).
    """
    if not isinstance(choice, str):
        return _named(choice, names)
    if choice == "none":
        return None
    empty = [name for name, pixels in zip(names, class_pixels, strict=True) if not pixels]
    if empty:
        raise ConfigError(
            f"loss.class_weights={choice}: no pixel of the training split is labelled {', '.join(empty)}, so there "
            "is no frequency to take the inverse of. Give weights by name, for instance loss.class_weights="
            f"{{{names[0]}: 2}}, or split the data so that every class is in it"
        )
    total = sum(class_pixels)
    numbers = [float(pixels) for pixels in class_pixels]
    if choice == "effective":
        log_beta = math.log1p(-min(len(names) / total, 0.5)) if beta is None else math.log(beta)
        numbers = [-math.expm1(pixels * log_beta) for pixels in class_pixels]
    scale = total / sum(pixels / number for pixels, number in zip(class_pixels, numbers, strict=True))
    return tuple(scale / number for number in numbers)


def unknown_classes(weights: Mapping[str, float], names: Sequence[str]) -> str:
    """Returns a message that lists names of no class, and the classes; empty if all names are classes."""
    unknown = [name for name in weights if name not in names]
    if not unknown:
        return ""
    return f"loss.class_weights: no class is called {', '.join(unknown)}; the classes are {', '.join(names)}"


def _named(weights: Mapping[str, float], names: Sequence[str]) -> tuple[float, ...]:
    if message := unknown_classes(weights, names):
        raise ConfigError(message)
    values = tuple(float(weights.get(name, 1.0)) for name in names)
    if min(values) < 0 or max(values) <= 0 or not all(map(math.isfinite, values)):
        raise ConfigError(
            f"loss.class_weights: weights are finite and not below 0, and one is above 0; got {dict(weights)}"
        )
    return values

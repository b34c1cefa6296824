"""Class-weighted sampling: how often each sample occurs in an epoch, as whole numbers. Pure arithmetic, without torch.

Repeat factors follow Gupta, Dollar, Girshick, "LVIS" (2019), section 4: the rarest class in a sample decides how
often the sample is repeated. The frequency of a class is its share of the labelled pixels. A class counts as in a
sample if it has at least 1 % of the sample's labelled pixels.
"""

import numpy as np
import numpy.typing as npt

from d2ls.data.sampler import rounding_generator
from d2ls.errors import ConfigError

MAX_REPEATS = 8
"""Largest number of occurrences of a sample in an epoch, before rounding."""

_SHOWN = 0.01


def repeat_factors(
    class_pixels: npt.NDArray[np.integer], strength: float, *, maximum: float = MAX_REPEATS
) -> npt.NDArray[np.float64]:
    """Returns how often each sample should occur in an epoch, from 1 up to `maximum`.

    Args:
        class_pixels: N K pixel counts of the samples.
        strength: 0 repeats nothing. 1 repeats samples of a class x times if the class has 1/x of an equal share of
            the pixels.
        maximum: the largest factor.

    Raises:
        ConfigError: a strength outside 0..1 or a maximum below 1.
    """
    if not 0 <= strength <= 1:
        raise ConfigError(
            f"class weighting is a strength from 0 (off) to 1 (inverse frequency), got {strength}"
        )
    if maximum < 1:
        raise ConfigError(f"a sample occurs in the epoch at least once, so maximum {maximum} is impossible")
    pixels = np.asarray(class_pixels, dtype=np.float64)
    total = pixels.sum(axis=0)
    if strength == 0 or total.sum() == 0:
        return np.ones(len(pixels))
    rarity = total.sum() / (np.count_nonzero(total) * np.maximum(total, 1.0))
    factors = np.clip(rarity**strength, 1.0, maximum)
    shares = pixels / np.maximum(pixels.sum(axis=1, keepdims=True), 1.0)
    return np.where(shares >= _SHOWN, factors, 1.0).max(axis=1)


def multiplicities(factors: npt.NDArray[np.float64], *, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Rounds repeat factors to whole numbers. The mean over many epochs is the factor itself.

    Each factor is rounded down or up by systematic rounding. The sum is the same in every epoch, so all epochs have
    the same number of steps.

    Args:
        factors: N, each at least 1.
        seed: seed of the run.
        epoch: epoch, from 0.

    Returns:
        N, int64, each at least 1.
    """
    total = np.ceil(factors.sum() - 1e-6)
    ends = np.cumsum(factors * (total / factors.sum()))
    ends[-1] = total  # exact, whatever the rounding of the sum
    offset = rounding_generator(seed, epoch).random()
    marks = np.floor(ends + offset).astype(np.int64)
    return np.maximum(np.diff(marks, prepend=np.int64(0)), 1)

"""Recipe section `sweep`."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.base import Scalar, Section


class Axis(Section):
    """Values of one swept key: a list or a range."""

    values: tuple[Scalar, ...] | None = None
    """Values to try."""
    low: float | None = None
    """Lowest value of a range, in place of `values`; for `random` and `tpe`."""
    high: float | None = None
    """Highest value of a range."""
    log: bool = False
    """Draw from the range on a logarithmic scale."""
    integer: bool = False
    """Draw whole numbers."""
    when: dict[str, Scalar] | None = None
    """Sweep the key only where these other keys have these values, e.g. {loss.contrastive: infonce}."""

    @model_validator(mode="after")
    def _values_or_range(self) -> Self:
        if self.values is not None:
            if not self.values or self.low is not None or self.high is not None:
                raise ValueError("give either `values` (at least one) or `low` and `high`")
        elif self.low is None or self.high is None or not self.low < self.high:
            raise ValueError("a range needs low < high; or list `values`")
        if self.log and self.low is not None and self.low <= 0:
            raise ValueError("a logarithmic range needs low > 0")
        return self


MAX_TRIALS = 10_000
"""Largest number of configurations of a sweep."""


class SweepConfig(Section):
    """Search over any keys of the recipe; by default over stage count and contrastive temperature."""

    space: dict[str, Axis] = {
        "model.stages": Axis(values=(1, 2, 3)),
        "loss.temperature": Axis(values=(0.07, 0.2, 0.5), when={"loss.contrastive": "infonce"}),
    }
    """The values to try for each dotted key of the recipe."""
    search: Literal["grid", "random", "tpe"] = "grid"
    """`grid`: every combination; `random`; `tpe`: tree-structured Parzen estimator (the extra `search`)."""
    num_trials: Annotated[int, Field(ge=1, le=MAX_TRIALS)] | None = None
    """Number of configurations that `random` and `tpe` try."""
    overrides: dict[str, Any] = {"loss.contrastive": "infonce"}
    """Keys that replace the recipe's values in every trial and in the final training."""
    trial_overrides: dict[str, Any] = {}
    """Keys that replace the recipe's values only in the trials, e.g. {train.epochs: 5}."""
    scheduler: Literal["none", "asha"] = "none"
    """`asha` stops trials early that score lower than others at the same epoch (asynchronous successive halving)."""
    grace_epochs: Annotated[int, Field(ge=1)] = 1
    """Epochs before ASHA may stop a trial."""
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """With a factor of 3, ASHA continues the best third of the trials and compares again after 3 times the epochs."""
    max_concurrent_trials: Annotated[int, Field(ge=1)] | None = None
    """Trials at once; unset: as many as the cluster holds."""
    final: bool = True
    """Train the best configuration at full length, evaluate it on the test split and register it."""

    @model_validator(mode="after")
    def _search_is_complete(self) -> Self:
        if not self.space:
            raise ValueError("the search space is empty")
        if self.search == "grid":
            ranges = [key for key, axis in self.space.items() if axis.values is None]
            if ranges:
                raise ValueError(f"search: grid needs listed values, these keys have ranges: {ranges}")
            combinations = math.prod(len(axis.values or ()) for axis in self.space.values())
            if combinations > MAX_TRIALS:
                raise ValueError(
                    f"a grid of {combinations:,} combinations, at most {MAX_TRIALS:,}: list fewer values, or "
                    "search: random with num_trials"
                )
            if self.num_trials is not None:
                raise ValueError("num_trials is for random and tpe; a grid tries every combination")
        elif self.num_trials is None:
            raise ValueError(f"search: {self.search} needs `num_trials`, the number of configurations to try")
        return self

"""The plan of a sweep: its trials and their resources. A plan that does not fit is refused, with the numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from d2ls.errors import ConfigError, ResourceError
from pipeline import cluster
from pipeline.cluster import Cluster
from pipeline.config import Recipe
from pipeline.console import make_console
from pipeline.tuning.report import SEED
from pipeline.tuning.space import (
    Values,
    check_space,
    configurations,
    describe,
    in_vain,
    trial_recipe,
)

LISTED = 20
"""Largest number of configurations that are listed one by one."""


@dataclass(frozen=True)
class Plan:
    """The plan of a sweep.

    Attributes:
        recipe: the sweep's recipe.
        chosen: configurations that are known beforehand; none if the search chooses them later.
        repeats: additional trainings of the best configuration, with other seeds.
        concurrent: trials at once; None if unknown before the sweep joins its cluster.
        resources: text on the resources of the machine or cluster and of a trial.
        in_vain: a sentence for each swept key without effect.
    """

    recipe: Recipe
    chosen: Sequence[Values]
    repeats: int
    concurrent: int | None
    resources: str
    in_vain: Sequence[str] = ()

    @classmethod
    def make(cls, recipe: Recipe, machines: Cluster | None, *, seeds: int = 1) -> "Plan":
        """Makes the plan.

        Args:
            recipe: the sweep's recipe.
            machines: what the sweep runs on; None if not known yet.
            seeds: number of seeds with which the best configuration is trained.

        Raises:
            ConfigError: the space cannot be searched.
            ResourceError: one trial needs more resources than there are; shows the arithmetic.
        """
        check_space(recipe)
        chosen = configurations(recipe) if recipe.sweep.search != "tpe" else []
        count = len(chosen) or recipe.sweep.num_trials or 1
        concurrent, resources = None, f"as many at once as {recipe.cluster.address or 'RAY_ADDRESS'} holds"
        if machines is not None:
            fits, resources = _fitting(trial_recipe(recipe, chosen[0] if chosen else {}), machines)
            concurrent = min(fits, recipe.sweep.max_concurrent_trials or count, count)
        return cls(recipe, chosen, seeds - 1, concurrent, resources, in_vain(recipe, recipe.sweep.space))

    @property
    def trials(self) -> int:
        """Largest number of configurations that are tried."""
        return len(self.chosen) or self.recipe.sweep.num_trials or 1

    def show(self, console: Console) -> None:
        """Prints the plan."""
        trial = trial_recipe(self.recipe, {})
        at_once = f"{self.concurrent} at once, " if self.concurrent else ""
        final = f"; then the best one for {self.recipe.train.length}" if self.recipe.sweep.final else ""
        console.print(
            f"[bold]Plan[/]: {self.trials} trial(s) of {trial.train.length}, {at_once}"
            f"{trial.cluster.workers_text} worker(s) each ({self.resources})"
            + (f"; then the best one with {self.repeats} further seed(s)" if self.repeats else "")
            + f"{final}. The time left is shown after the first epochs."
        )
        for values in self.chosen[:LISTED]:
            console.print(f"  {describe(values)}", markup=False)
        if len(self.chosen) > LISTED:
            console.print(f"  and {len(self.chosen) - LISTED} more")
        held = {**self.recipe.sweep.overrides, **self.recipe.sweep.trial_overrides}
        if held:
            console.print(f"  in each of them: {describe(held)}", markup=False)
        for words in self.in_vain:
            console.print(f"[yellow]warning[/]: {words}")


def check_seeds(recipe: Recipe, seeds: int) -> int:
    """Returns the number of seeds of the best configuration.

    Raises:
        ConfigError: not a possible number, or the search space has seeds already.
    """
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: at least 1")
    if seeds > 1 and SEED in recipe.sweep.space:
        raise ConfigError(
            f"--seeds {seeds}: sweep.space has `seed` already, so every configuration is repeated; take one out"
        )
    return seeds


def show_plan(recipe: Recipe, *, seeds: int | None = None) -> None:
    """Prints the plan of a new sweep, without starting, joining or writing anything.

    Raises:
        ConfigError: the space cannot be searched.
        ResourceError: no trial fits this machine.
    """
    machine = None if cluster.address_of(recipe.cluster) else cluster.this_machine()
    seeds = check_seeds(recipe, 1 if seeds is None else seeds)
    Plan.make(recipe.anchored(), machine, seeds=seeds).show(make_console())


def _fitting(trial: Recipe, machines: Cluster) -> tuple[int, str]:
    """Returns how many trials fit at once, and a text on the resources of one."""
    workers = trial.cluster.worker_range[0]
    per_worker = machines.per_worker(trial.cluster)
    have = {"CPU": machines.cpus, "GPU": machines.gpus}
    words = ", ".join(f"{workers * need:g} of {have[kind]:g} {kind}s" for kind, need in per_worker.items())
    fits = machines.capacity(trial.cluster) // workers
    if fits < 1:
        amounts = " and ".join(f"{need:g} {kind}s" for kind, need in per_worker.items())
        raise ResourceError(
            f"a trial does not fit: {workers} worker(s) x {amounts} takes {words}. "
            "Lower cluster.workers or cluster.cpus_per_worker, or join a larger cluster"
        )
    return fits, words

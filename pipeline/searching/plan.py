"""What a sweep will do, said before it does it; the impossible is refused with the arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from d2ls.errors import ResourceError
from pipeline.config import Recipe
from pipeline.searching.space import Values, describe, final_recipe, swept_in_vain, trial_recipe

if TYPE_CHECKING:
    from rich.console import Console

LISTED = 20
"""Configurations that are listed one by one."""


@dataclass(frozen=True)
class Plan:
    """What the sweep will do, said before it starts.

    Attributes:
        chosen: configurations that are known beforehand; none where the search chooses on the way.
        trials: number of configurations, at most.
        repeats: further trainings of the best one, with other seeds.
        workers: training processes a trial has, at most.
        concurrent: trials at once.
        largest: the configuration with the largest network; empty where none is known beforehand.
        trial: recipe of a trial with it.
        final: recipe of the final training with it; None without one.
        disk_gb: largest size of the kept checkpoints.
        resources: what the machine or cluster has and a trial takes, in words.
        in_vain: swept keys without effect, a sentence each.
    """

    chosen: Sequence[Values]
    trials: int
    repeats: int
    workers: int
    concurrent: int
    largest: Values
    trial: Recipe
    final: Recipe | None
    disk_gb: float
    resources: str
    in_vain: Sequence[str] = ()

    @classmethod
    def make(
        cls, recipe: Recipe, chosen: Sequence[Values], cpus: float, gpus: float, *, repeat: int = 1
    ) -> "Plan":
        """Works out the plan.

        Args:
            recipe: the sweep's recipe.
            chosen: configurations that are known beforehand.
            cpus: CPUs of the machine or cluster.
            gpus: likewise.
            repeat: seeds of the best configuration, in all.

        Raises:
            ResourceError: one trial needs more than there is; shows the arithmetic.
        """
        trial = trial_recipe(recipe, chosen[0] if chosen else {})
        workers, most = trial.cluster.worker_range[0], trial.cluster.worker_range[1]
        gpus_each = (
            trial.cluster.gpus_per_worker if trial.cluster.gpus_per_worker is not None else float(gpus > 0)
        )
        needed_cpus, needed_gpus = workers * trial.cluster.cpus_per_worker, workers * gpus_each
        fits = [cpus // needed_cpus] + ([gpus // needed_gpus] if needed_gpus else [])
        resources = f"{needed_cpus:g} of {cpus:g} CPUs" + (
            f", {needed_gpus:g} of {gpus:g} GPUs" if needed_gpus else ""
        )
        if min(fits) < 1:
            raise ResourceError(
                f"a trial does not fit: {workers} worker(s) x {trial.cluster.cpus_per_worker:g} CPUs"
                f"{f' and {gpus_each:g} GPUs' if gpus_each else ''} takes {resources}. "
                "Lower cluster.workers or cluster.cpus_per_worker, or join a larger cluster"
            )
        count = len(chosen) or recipe.sweep.trials or 1
        largest, checkpoint_gb = _largest(recipe, chosen or [{}])
        final = final_recipe(recipe, largest) if recipe.sweep.final else None
        return cls(
            chosen=chosen,
            trials=count,
            repeats=repeat - 1,
            workers=most,
            concurrent=int(min(*fits, recipe.sweep.concurrent or count, count)),
            largest=largest,
            trial=trial_recipe(recipe, largest),
            final=final,
            disk_gb=(count + repeat - 1 + (final is not None)) * 2 * checkpoint_gb,
            resources=resources,
            in_vain=swept_in_vain(recipe),
        )

    @property
    def differs_at_last(self) -> bool:
        """Whether a step of the final training costs something else than a trial's, size of batch and crop apart."""

        def costs(recipe: Recipe | None) -> object:
            return recipe and (
                recipe.model,
                recipe.train.precision,
                recipe.train.compile,
                recipe.train.channels_last,
            )

        return self.final is not None and costs(self.final) != costs(self.trial)

    def show(self, console: "Console") -> None:
        """Prints the plan."""
        console.print(
            f"[bold]Plan[/]: {self.trials} trial(s) of {self.trial.train.epochs} epoch(s), {self.concurrent} at once, "
            f"{self.workers} worker(s) each ({self.resources})"
            + (f"; then the best one with {self.repeats} further seed(s)" if self.repeats else "")
            + (f"; then the best one for {self.final.train.epochs} epoch(s)" if self.final else "")
            + f". Checkpoints keep up to {self.disk_gb:.1f} GB."
        )
        for values in self.chosen[:LISTED]:
            console.print(f"  {describe(values)}", markup=False)
        if len(self.chosen) > LISTED:
            console.print(f"  and {len(self.chosen) - LISTED} more")
        held = {**self.trial.sweep.fixed, **self.trial.sweep.trial}
        if held:
            console.print(f"  in each of them: {describe(held)}", markup=False)
        for words in self.in_vain:
            console.print(f"[yellow]warning[/]: {words}")


def _largest(recipe: Recipe, chosen: Sequence[Values]) -> tuple[Values, float]:
    """Finds the configuration with the largest network, and the GB of a checkpoint of it.

    That is weights, AdamW's two moments of each and averaged weights where they are kept, in float32, for 8 classes.
    """
    import torch

    from d2ls.model import build_model

    sizes: dict[str, int] = {}

    def parameters(values: Values) -> int:
        model = trial_recipe(recipe, values).model
        name = model.model_dump_json()
        if name not in sizes:
            with torch.device("meta"):
                network = build_model(
                    architecture=model.architecture,
                    backbone=model.backbone,
                    num_classes=8,
                    stages=model.stages,
                    dictionary=model.dictionary,
                    aggregator=model.aggregator,
                    static_branch=model.static_branch,
                )
            sizes[name] = sum(parameter.numel() for parameter in network.parameters())
        return sizes[name]

    largest = max(chosen, key=parameters)
    return largest, parameters(largest) * 4 * (4 if recipe.train.ema_decay else 3) / 1e9

"""What a sweep will do, said before it does it; the impossible is refused with the arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from d2ls.errors import ResourceError
from pipeline.config import Recipe
from pipeline.searching.space import Values, swept_in_vain, trial_recipe

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Plan:
    """What the sweep will do, said before it starts.

    Attributes:
        trials: number of configurations.
        epochs: epochs a trial has.
        workers: training processes a trial has.
        concurrent: trials at once.
        final_epochs: epochs of the final training, 0 without one.
        disk_gb: largest size of the kept checkpoints.
        resources: what the machine or cluster has and a trial takes, in words.
        in_vain: swept keys without effect, a sentence each.
    """

    trials: int
    epochs: int
    workers: int
    concurrent: int
    final_epochs: int
    disk_gb: float
    resources: str
    in_vain: Sequence[str] = ()

    @classmethod
    def make(cls, recipe: Recipe, chosen: Sequence[Values], cpus: float, gpus: float) -> "Plan":
        """Works out the plan.

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
        runs = count + bool(recipe.sweep.final)
        return cls(
            trials=count,
            epochs=trial.train.epochs,
            workers=most,
            concurrent=int(min(*fits, recipe.sweep.concurrent or count, count)),
            final_epochs=recipe.train.epochs if recipe.sweep.final else 0,
            disk_gb=runs * 2 * _checkpoint_gb([trial_recipe(recipe, values) for values in chosen or [{}]]),
            resources=resources,
            in_vain=swept_in_vain(recipe),
        )

    def show(self, console: "Console") -> None:
        """Prints the plan."""
        console.print(
            f"[bold]Plan[/]: {self.trials} trial(s) of {self.epochs} epoch(s), {self.concurrent} at once, "
            f"{self.workers} worker(s) each ({self.resources})"
            + (f"; then the best one for {self.final_epochs} epoch(s)" if self.final_epochs else "")
            + f". Checkpoints keep up to {self.disk_gb:.1f} GB. Time is estimated from the first epoch on."
        )
        for words in self.in_vain:
            console.print(f"[yellow]warning[/]: {words}")


def _checkpoint_gb(recipes: Sequence[Recipe]) -> float:
    """Size of the largest network's checkpoint: weights and AdamW's two moments of each, in float32, 8 classes."""
    import torch

    from d2ls.model import build_model

    largest = 0
    for model in {recipe.model.model_dump_json(): recipe.model for recipe in recipes}.values():
        with torch.device("meta"):
            network = build_model(
                architecture=model.architecture, backbone=model.backbone, num_classes=8, stages=model.stages
            )
        largest = max(largest, sum(parameter.numel() for parameter in network.parameters()))
    return largest * 4 * (4 if recipes[0].train.ema_decay else 3) / 1e9

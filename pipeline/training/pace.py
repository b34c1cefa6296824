"""How long a training will take: some of its real steps, timed on a worker before it starts."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.config import Recipe, parse_recipe

if TYPE_CHECKING:
    from d2ls.shards import ShardSet
    from d2ls.training.reports import StepReport

FEWEST, MOST = 2, 3
"""Steps that are timed; the first also warms up (and compiles), the fastest counts."""

PATIENCE_SECONDS = 20.0
"""After a step that computed for as long no further one than the fewest follows."""


@dataclass(frozen=True)
class Pace:
    """What a worker needs for its share of a step.

    Attributes:
        step: seconds of a whole step; without the loader's part where processes of its own do that.
        forward: seconds of the forward pass, in `step`.
        share: samples of the worker.
        crop: side of a sample in pixels.
    """

    step: float
    forward: float
    share: int
    crop: int

    def training(self, recipe: Recipe, shards: "ShardSet") -> float:
        """Seconds of a whole training of this network by a recipe, its evaluations included, its start not."""
        from d2ls.loader.plan import steps_per_epoch

        train, crop = recipe.train, recipe.loader.augmentation.crop_size
        steps = steps_per_epoch(shards.card.splits[recipe.roles.train].samples, train.global_batch)
        step = self.step * share_of(recipe) * crop**2 / (self.share * self.crop**2)
        evaluations = -(-train.epochs // train.evaluate_every)
        evaluation = self.evaluation(shards, recipe.roles.select) / recipe.cluster.worker_range[0]
        return train.epochs * steps * step + evaluations * evaluation

    def evaluation(self, shards: "ShardSet", split: str) -> float:
        """Seconds of an evaluation of a split by one worker."""
        import pyarrow.compute as pc

        rows = shards.rows(split)
        pixels = pc.sum(pc.multiply(pc.cast(rows["height"], "int64"), rows["width"])).as_py()
        return float(self.forward * pixels / (self.share * self.crop**2))


def share_of(recipe: Recipe) -> int:
    """Samples of a step that one worker takes, at most, where there are as few workers as the recipe allows."""
    return -(-recipe.train.global_batch // recipe.cluster.worker_range[0])


def measure(recipe: Mapping[str, Any], shards: str, device: str) -> Pace:
    """Trains some steps on real samples, in this process, and keeps nothing but what the loader caches.

    Args:
        recipe: the resolved recipe, as plain values. No weights are loaded.
        shards: location of the shards.
        device: `cpu` or `cuda`.
    """
    import torch

    from d2ls.shards import ShardSet
    from d2ls.training.ranks import Ranks
    from d2ls.training.reports import Callback
    from pipeline.training import build

    asked = parse_recipe(recipe)
    share = share_of(asked)
    alone = {"train.global_batch": share, "cluster.workers": 1, "loader.workers": 0}
    untrained = {"model.pretrained": False, "model.weights": None, "model.init": None}
    chosen = asked.with_values({**alone, **untrained})
    build.use_threads(chosen.cluster.cpus_per_worker)
    found: list[tuple[float, float]] = []

    class Timing(Callback):
        """Ends the training after some steps."""

        def on_step(self, report: "StepReport") -> None:
            """Notes the time of a step."""
            seconds = report.seconds
            computed = seconds["step"] - seconds["data"]
            found.append((computed if asked.loader.workers else seconds["step"], seconds["forward"]))
            enough = FEWEST if computed > PATIENCE_SECONDS else MOST
            if report.step >= min(enough, report.total_steps):
                raise _EnoughError

    opened = ShardSet.open(shards)
    ranks = Ranks.current(torch.device(device))
    loaders = build.loaders(chosen, opened, ranks)
    try:
        with tempfile.TemporaryDirectory(prefix="d2ls-pace-") as scratch:
            build.trainer(chosen, opened, ranks, loaders, checkpoints=scratch, callbacks=[Timing()]).run()
    except _EnoughError:
        pass
    finally:
        loaders.close()
    step, forward = min(found)
    return Pace(step, forward, share, chosen.loader.augmentation.crop_size)


class _EnoughError(Exception):
    """Ends a training that was begun to be timed."""

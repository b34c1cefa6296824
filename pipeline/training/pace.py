"""How long a training will take: some of its real steps, timed on a worker before it starts."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.config import Recipe, parse_recipe

if TYPE_CHECKING:
    from d2ls.shards import ShardSet
    from d2ls.training.reports import StepReport

STEPS = 3
"""Steps that are timed; the first ones also warm up, the fastest counts."""

PATIENCE_SECONDS = 20.0
"""After a step that took as long none follows."""


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
        """Seconds of a whole training by a recipe, its evaluations included, its start not."""
        from d2ls.loader.plan import steps_per_epoch

        train, workers = recipe.train, recipe.cluster.worker_range[0]
        steps = steps_per_epoch(shards.card.splits[recipe.roles.train].samples, train.global_batch)
        step = self.step * share_of(recipe) / self.share
        evaluations = -(-train.epochs // train.evaluate_every)
        return (
            train.epochs * steps * step + evaluations * self.evaluation(shards, recipe.roles.select) / workers
        )

    def evaluation(self, shards: "ShardSet", split: str) -> float:
        """Seconds of an evaluation of a split by one worker."""
        import pyarrow.compute as pc

        rows = shards.rows(split)
        pixels = pc.sum(pc.multiply(pc.cast(rows["height"], "int64"), rows["width"])).as_py()
        return float(self.forward * pixels / (self.share * self.crop**2))


def share_of(recipe: Recipe) -> int:
    """Samples of a step that one worker takes, at most."""
    return -(-recipe.train.global_batch // recipe.cluster.worker_range[0])


def measure(recipe: Mapping[str, Any], shards: str) -> Pace:
    """Trains some steps on real samples, in this process, and keeps nothing of them.

    Args:
        recipe: the resolved recipe, as plain values. No weights are loaded.
        shards: location of the shards.
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
            loading = seconds["data"] if asked.loader.workers else 0.0
            found.append((seconds["step"] - loading, seconds["forward"]))
            enough = min(STEPS, report.total_steps)
            if report.step >= enough or seconds["step"] > PATIENCE_SECONDS:
                raise _EnoughError

    opened = ShardSet.open(shards)
    ranks = Ranks.current(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
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

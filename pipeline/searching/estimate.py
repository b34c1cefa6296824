"""How long a sweep will take, from some steps of one of its trials on one of the workers it will use."""

from typing import TYPE_CHECKING

from pipeline.console import in_words
from pipeline.searching.plan import Plan
from pipeline.searching.space import describe
from pipeline.training.pace import Pace, measure

if TYPE_CHECKING:
    from rich.console import Console

    from d2ls.shards import ShardSet
    from pipeline.cluster import Cluster
    from pipeline.config import Recipe

START_SECONDS = 30.0
"""A trial beside its loop: processes, imports, figures, the last checkpoint. Measured on two slow cores
(benchmarks/results/sweep.md), so elsewhere rather too much."""

PATIENCE_SECONDS = 300.0
"""How long to wait for the steps; a cluster may be busy, or start a node first."""


def show_time(console: "Console", plan: Plan, shards: "ShardSet", cluster: "Cluster") -> None:
    """Prints the time that a plan may take; where that cannot be found out, why."""
    from pipeline.console import stage

    stage(
        console, f"how long it may take: some steps of {describe(plan.largest) or 'the recipe'}, on a worker"
    )
    try:
        pace = _on_a_worker(plan.trial, shards, cluster)
        final = pace
        if plan.final and plan.differs_at_last:
            final = _on_a_worker(plan.final, shards, cluster)
        words = describe_time(plan, pace, final, shards, on_workers=not cluster.own)
    except (
        Exception
    ) as error:  # whatever it is: the trials will say it in their own way, or do without an estimate
        cause = getattr(error, "cause", None) or error
        lines = [line for line in str(cause).splitlines() if line.strip()]
        words = f"  time unknown: {type(cause).__name__}: {lines[0].strip() if lines else 'no message'}"
    console.print(words, markup=False, soft_wrap=True)


def describe_time(
    plan: Plan, pace: Pace, final: Pace, shards: "ShardSet", *, on_workers: bool = False
) -> str:
    """Says how long a plan takes, and what that is made of.

    Args:
        plan: the plan.
        pace: of the trial that was timed.
        final: of the final training.
        shards: the shard set.
        on_workers: whether the report split is scored on all workers of the final training, or by one process.
    """
    trial = START_SECONDS + pace.training(plan.trial, shards)
    parts = [f"a trial {in_words(trial)}"]
    total = trial * (-(-plan.trials // plan.concurrent) + -(-plan.repeats // plan.concurrent))
    if plan.final:
        last = START_SECONDS + final.training(plan.final, shards)
        last += _report(plan.final, final, shards, on_workers=on_workers)
        parts.append(f"final training and evaluation {in_words(last)}")
        total += last
    most = "at most " if plan.trial.sweep.scheduler != "none" else ""
    workers = plan.trial.cluster.worker_range[0]
    parts.append(f"{pace.step:.2g} s a step of {pace.share} sample(s) on each of {workers} worker(s)")
    return f"  {most}about {in_words(total)}: {', '.join(parts)}"


def _report(recipe: "Recipe", pace: Pace, shards: "ShardSet", *, on_workers: bool) -> float:
    from d2ls.inference.augment import cost

    seconds = pace.evaluation(shards, recipe.roles.report) * cost(recipe.evaluate.augmentation)
    return seconds / (recipe.cluster.worker_range[1] if on_workers else 1)


def _on_a_worker(recipe: "Recipe", shards: "ShardSet", cluster: "Cluster") -> Pace:
    """Times steps of a recipe in a process of Ray's that holds what a worker holds."""
    import ray

    resources = cluster.per_worker(recipe.cluster)
    device = "cuda" if resources.get("GPU") else "cpu"
    task = ray.remote(max_calls=1, max_retries=0)(measure)  # its process ends with it and gives its GPU back
    task = task.options(num_cpus=resources["CPU"], num_gpus=resources.get("GPU", 0))
    answer = task.remote(recipe.to_dict(), shards.uri, device)
    ready, _ = ray.wait([answer], timeout=PATIENCE_SECONDS)
    if not ready:
        ray.cancel(answer, force=True)
        raise TimeoutError(f"no worker was free and done within {in_words(PATIENCE_SECONDS)}")
    pace: Pace = ray.get(answer)
    return pace

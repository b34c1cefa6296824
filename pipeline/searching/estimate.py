"""How long a sweep will take, from some steps of its largest network on one of the workers it will use."""

from typing import TYPE_CHECKING

from pipeline.searching.plan import Plan
from pipeline.training.pace import Pace, measure

if TYPE_CHECKING:
    from rich.console import Console

    from d2ls.shards import ShardSet
    from pipeline.cluster import Cluster

START_SECONDS = 10.0
"""A trial beside its loop: processes, imports, figures, the last checkpoint; see benchmarks/results/sweep.md."""


def show_time(console: "Console", plan: Plan, shards: "ShardSet", cluster: "Cluster") -> None:
    """Prints the time that a plan may take; where the steps fail, why, and that it will be seen on the way."""
    import ray

    from pipeline.console import stage

    stage(console, "how long it may take: three steps of the largest network, on a worker")
    recipe = plan.trial
    resources = cluster.per_worker(recipe.cluster)
    task = ray.remote(max_calls=1, max_retries=0)(measure)  # its process ends with it and gives its GPU back
    task = task.options(num_cpus=resources["CPU"], num_gpus=resources.get("GPU", 0))
    try:
        pace = ray.get(task.remote(recipe.to_dict(), shards.uri))
    except ray.exceptions.RayError as error:
        cause = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
        console.print(f"[yellow]warning[/]: time unknown, the steps failed: {cause}", highlight=False)
        return
    console.print(describe_time(plan, pace, shards), markup=False)


def describe_time(plan: Plan, pace: Pace, shards: "ShardSet") -> str:
    """Says how long a plan takes at a pace, and what that is made of."""
    trial = START_SECONDS + pace.training(plan.trial, shards)
    parts = [f"a trial {_words(trial)}"]
    total = trial * (-(-plan.trials // plan.concurrent) + -(-plan.repeats // plan.concurrent))
    if plan.final:
        final = START_SECONDS + pace.training(plan.final, shards)
        final += pace.evaluation(shards, plan.final.roles.report)
        parts.append(f"final training and evaluation {_words(final)}")
        total += final
    most = "at most " if plan.trial.sweep.scheduler != "none" else ""
    parts.append(f"{pace.step:.2g} s a step of {pace.share} sample(s) a worker")
    return f"  {most}about {_words(total)}: {', '.join(parts)}"


def _words(seconds: float) -> str:
    """Seconds in words, as roughly as the estimate is."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"

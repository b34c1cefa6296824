"""Sharding on Ray: a task an item, a bounded number at a time, near raw data that only this machine holds."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from d2ls import storage
from d2ls.errors import D2LSError
from pipeline.config.recipe import Recipe

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(
    function: Callable[[Item, Any], Result], items: Iterable[Item], extra: Any, recipe: Recipe, inline: bool
) -> Iterator[Result]:
    """Yields function(item, extra) for all items as they finish, on Ray unless inline.

    Args:
        function: importable by name; its errors of ours come out as they were raised.
        items: plain values.
        extra: handed to every call.
        recipe: says where Ray is, and where the raw data lie.
        inline: work in this process.
    """
    items = list(items)
    if inline or not items:
        for item in items:
            yield function(item, extra)
        return
    from pipeline.cluster import connect

    with connect(recipe.cluster) as cluster:
        # Raw data on this machine's disk cannot be read by tasks on other nodes.
        shared = not storage.is_local(recipe.data.root) or os.environ.get("D2LS_SHARED_PATHS")
        yield from _on_ray(function, items, extra, here=cluster.nodes > 1 and not shared)


def _on_ray(
    function: Callable[[Item, Any], Result], items: Sequence[Item], extra: Any, here: bool
) -> Iterator[Result]:
    """Runs one Ray task an item, a bounded number at a time; stops the others where one fails.

    `here` keeps the tasks on the driver's node.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    options: dict[str, Any] = {"num_cpus": 1, "max_retries": 3}
    cpus = ray.cluster_resources().get("CPU", 1)  # type: ignore[no-untyped-call]
    if here:
        own = ray.get_runtime_context().get_node_id()
        (resources,) = (node["Resources"] for node in ray.nodes() if node["NodeID"] == own)  # type: ignore[no-untyped-call]
        cpus = resources.get("CPU", 0)  # 0 on heads that are kept free of work
        options["num_cpus"] = min(1, cpus)
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(own, soft=False)
    remote: Any = ray.remote(**options)(_single_threaded)
    waiting = iter(items)
    ahead = 2 * max(1, int(cpus))
    pending: list[Any] = [
        remote.remote(function, item, extra) for _, item in zip(range(ahead), waiting, strict=False)
    ]
    try:
        while pending:
            ready, pending = ray.wait(pending, num_returns=1)
            pending += [remote.remote(function, item, extra) for _, item in zip(ready, waiting, strict=False)]
            yield _result(ray.get, ready[0])
    finally:
        for left in pending:
            ray.cancel(left, force=True)


def _single_threaded(function: Callable[[Item, Any], Result], item: Item, extra: Any) -> Result:
    """Runs in a Ray worker: one task, one core."""
    import cv2

    cv2.setNumThreads(1)
    return function(item, extra)


def _result(get: Callable[[Any], Any], reference: Any) -> Any:
    """Takes a result; an error of ours comes out as it was raised in the worker."""
    from ray.exceptions import RayTaskError

    try:
        return get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, D2LSError):
            raise error.cause from None
        raise

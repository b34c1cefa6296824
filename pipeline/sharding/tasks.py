"""Sharding on Ray: a Ray task per item, a bounded number at a time, on this machine if only it holds the raw data."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import cv2
import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from d2ls import storage
from d2ls.errors import D2LSError
from pipeline.cluster import connect
from pipeline.config.train import ClusterConfig

Item = TypeVar("Item")
Extra = TypeVar("Extra")
Result = TypeVar("Result")


class RayTasks:
    """A `sharding.tasks.TaskRunner`.

    Args:
        cluster: where Ray is.
        root: the raw data. Tasks on other nodes cannot read a local folder, unless D2LS_SHARED_PATHS is set.
    """

    def __init__(self, cluster: ClusterConfig, root: str) -> None:
        self._cluster = cluster
        self._local = storage.is_local(root) and not os.environ.get("D2LS_SHARED_PATHS")

    def __call__(
        self, function: Callable[[Item, Extra], Result], items: Sequence[Item], extra: Extra
    ) -> Iterator[Result]:
        """Yields `function(item, extra)` for each item as it finishes; errors of this project keep their type."""
        if not items:
            return
        with connect(self._cluster) as cluster:
            options, cpus = _options(this_node=self._local and cluster.nodes > 1)
            yield from _run(
                ray.remote(**options)(_single_threaded), function, items, extra, 2 * max(1, int(cpus))
            )


def _options(this_node: bool) -> tuple[dict[str, Any], float]:
    """Returns the options of a Ray task, and the number of cores that such tasks have."""
    if not this_node:
        return {"num_cpus": 1, "max_retries": 3}, ray.cluster_resources().get("CPU", 1)  # type: ignore[no-untyped-call]
    node_id = ray.get_runtime_context().get_node_id()
    (resources,) = (node["Resources"] for node in ray.nodes() if node["NodeID"] == node_id)  # type: ignore[no-untyped-call]
    cpus = resources.get("CPU", 0)  # 0 on heads that run no work
    affinity = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return {"num_cpus": min(1, cpus), "max_retries": 3, "scheduling_strategy": affinity}, cpus


def _run(
    remote: Any, function: Callable[[Item, Extra], Result], items: Sequence[Item], extra: Extra, ahead: int
) -> Iterator[Result]:
    """Keeps `ahead` tasks submitted; if one fails, cancels the others."""
    waiting = iter(items)
    pending: list[Any] = [
        remote.remote(function, item, extra) for _, item in zip(range(ahead), waiting, strict=False)
    ]
    try:
        while pending:
            ready, pending = ray.wait(pending, num_returns=1)
            pending += [remote.remote(function, item, extra) for _, item in zip(ready, waiting, strict=False)]
            yield _result(ready[0])
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)


def _single_threaded(function: Callable[[Item, Extra], Result], item: Item, extra: Extra) -> Result:
    """Runs in a Ray worker: one task, one core."""
    cv2.setNumThreads(1)
    return function(item, extra)


def _result(reference: Any) -> Any:
    """Returns a result; raises an error of this project as it was raised in the worker."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, D2LSError):
            raise error.cause from None
        raise

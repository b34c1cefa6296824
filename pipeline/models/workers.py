"""Runs trained models on Ray: each worker loads the model once and takes one piece of work after another."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.compute import keep_freed_memory
from pipeline.config.train import ClusterConfig

if TYPE_CHECKING:
    from d2ls.inference import Predictor


class ModelWorker:
    """Holds a model; `spread` runs it as a Ray actor.

    Args:
        files: the model's files by name.
        where: the model that was asked for, for messages.
        settings: further arguments of `pipeline.models.load_predictor`.
    """

    def __init__(self, files: dict[str, bytes], where: str, settings: dict[str, Any]) -> None:
        keep_freed_memory()
        self.files, self.where, self.settings = files, where, settings

    @cached_property
    def predictor(self) -> "Predictor":
        """The model. The first piece of work loads it, so that its errors are returned as values too."""
        from pipeline.models.loading import load_predictor, unpacked

        with unpacked(self.files) as folder:
            return load_predictor(folder, where=self.where, **self.settings)

    def work(self, function: Callable[..., Any], piece: Any) -> Any:
        """Calls a function with the model and a piece of work.

        Errors that a user can fix are returned as values, so that one bad scene does not stop the others.
        """
        from d2ls.errors import D2LSError

        try:
            return function(self.predictor, piece)
        except D2LSError as error:
            return error


def spread(
    function: Callable[..., Any],
    pieces: Sequence[Any],
    folder: Path,
    where: str,
    settings: dict[str, Any],
    config: ClusterConfig,
) -> Iterator[tuple[int, Any]]:
    """Works through pieces on Ray actors; yields the number and result (or D2LSError) of each piece when it is done.

    If a worker dies, its piece is given to another one, up to `max_failures` times.

    Args:
        function: takes the model and a piece; importable by name.
        pieces: plain values.
        folder: the model's two files; they are sent to the workers, which may not have access to folder or registry.
        where: the model that was asked for, for messages.
        settings: further arguments of `pipeline.models.load_predictor`.
        config: address of Ray, number and size of workers.

    Raises:
        ResourceError: no cluster answers, or it holds no worker of this size.
    """
    import ray

    from d2ls.errors import ResourceError
    from pipeline.cluster import connect
    from pipeline.models.loading import read_files

    with connect(config) as cluster:
        count = min(config.worker_range[1], len(pieces), cluster.capacity(config))
        if count < 1:
            raise ResourceError(
                f"the {cluster.describe()} has no room for a worker of {cluster.per_worker(config)}; "
                "lower cluster.cpus_per_worker or cluster.gpus_per_worker"
            )
        need = cluster.per_worker(config)
        kind = ray.remote(num_cpus=need["CPU"], num_gpus=need.get("GPU", 0))(ModelWorker)
        shared = ray.put(read_files(folder))
        yield from _work(
            ray, lambda: kind.remote(shared, where, settings), function, pieces, count, config.max_failures
        )


def _work(
    ray: Any,
    start: Callable[[], Any],
    function: Callable[..., Any],
    pieces: Sequence[Any],
    count: int,
    failures: int,
) -> Iterator[tuple[int, Any]]:
    waiting = list(range(len(pieces)))[::-1]
    running: dict[Any, tuple[int, Any]] = {}
    idle = [start() for _ in range(count)]
    while waiting or running:
        while waiting and idle:
            number, worker = waiting.pop(), idle.pop()
            running[worker.work.remote(function, pieces[number])] = (number, worker)
        for done in ray.wait(list(running))[0]:
            number, worker = running.pop(done)
            try:
                result = ray.get(done)
            except (
                ray.exceptions.RayActorError,
                ray.exceptions.ObjectLostError,
            ):  # its node, or the result on it
                if failures < 1:
                    raise
                failures -= 1
                waiting.append(number)
                idle.append(start())
                continue
            idle.append(worker)
            yield number, result
    for worker in idle:
        ray.kill(worker)

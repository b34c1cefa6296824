"""The resources of a Ray cluster, and the check that they are enough for a recipe."""

import os
from dataclasses import dataclass
from pathlib import Path

from d2ls import storage
from d2ls.errors import ResourceError, StorageError, TrackingError
from pipeline.config import Recipe
from pipeline.config.train import ClusterConfig
from pipeline.tracking import connection


@dataclass(frozen=True)
class Cluster:
    """A cluster that this process is connected to.

    Attributes:
        address: of its head; empty: this process alone, without Ray.
        nodes: number of live nodes; at least 2 if it can grow.
        cpus: all of them, busy or not, with those of nodes that the autoscaler may add.
        gpus: likewise.
        started_here: whether this process started it.
    """

    address: str
    nodes: int
    cpus: float
    gpus: float
    started_here: bool

    def use_gpu(self, config: ClusterConfig) -> bool:
        """Returns whether workers take GPUs."""
        if config.gpus_per_worker is not None:
            return config.gpus_per_worker > 0
        return self.gpus > 0

    def per_worker(self, config: ClusterConfig) -> dict[str, float]:
        """Returns the resources of one worker."""
        gpus = config.gpus_per_worker or 1.0
        return {"CPU": config.cpus_per_worker, **({"GPU": gpus} if self.use_gpu(config) else {})}

    def capacity(self, config: ClusterConfig) -> int:
        """Returns how many workers the cluster holds at once."""
        have = {"CPU": self.cpus, "GPU": self.gpus}
        return min(int(have[kind] / need + 1e-9) for kind, need in self.per_worker(config).items())

    def describe(self) -> str:
        """Returns a short description for messages."""
        kind = "local Ray" if self.started_here else f"Ray cluster at {self.address}"
        kind = kind if self.address else "this process"
        nodes = f", {self.nodes} nodes" if self.nodes > 1 else ""
        return f"{kind}{nodes}, {self.cpus:g} CPUs, {self.gpus:g} GPUs"


def address_of(config: ClusterConfig) -> str | None:
    """Returns the address of the cluster to join, from the recipe or RAY_ADDRESS; None: Ray is started here."""
    address = config.address or os.environ.get("RAY_ADDRESS")
    return None if address in (None, "", "local") else address


def this_machine() -> Cluster:
    """Returns the resources of this machine, without starting anything."""
    return Cluster("", 1, float(_cpus()), float(len(_gpus())), started_here=True)


def _cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> list[str]:
    """Names of the GPUs that this process may use, found without importing PyTorch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name.strip() not in ("", "-1")]
    return [file.name for file in Path("/dev").glob("nvidia[0-9]*")]


def check_resources(recipe: Recipe, cluster: Cluster) -> None:
    """Refuses requests that the cluster cannot satisfy, before anything is started.

    Raises:
        ResourceError: too few CPUs or GPUs, with the arithmetic.
        StorageError: a local location on more than one node.
        TrackingError: an MLflow store in a file on more than one node.
    """
    need = cluster.per_worker(recipe.cluster)
    fewest = recipe.cluster.worker_range[0]
    have = {"CPU": cluster.cpus, "GPU": cluster.gpus}
    for kind, amount in need.items():
        if fewest * amount > have[kind] + 1e-9:
            raise ResourceError(
                f"cluster.workers={recipe.cluster.workers_text} x {amount:g} {kind} = {fewest * amount:g} {kind}, "
                f"the {cluster.describe()} has {have[kind]:g}. "
                + _way_out(kind, cluster.capacity(recipe.cluster))
            )
    check_shared(recipe, cluster)


def check_shared(recipe: Recipe, cluster: Cluster) -> None:
    """Refuses local locations on more than one node.

    Raises:
        StorageError: storage or shards; names the key. D2LS_SHARED_PATHS=1 allows a path on a shared disk.
        TrackingError: the MLflow store is a file.
    """
    if cluster.nodes < 2 or os.environ.get("D2LS_SHARED_PATHS"):
        return
    for key, uri in {"output_dir": recipe.output_dir, "shards.uri": recipe.shards.uri}.items():
        if storage.is_local(uri):
            raise StorageError(
                f"{key}: {uri} is a local path, the cluster has {cluster.nodes} nodes. Use s3://bucket/prefix or "
                "another object store; where it is a disk that all nodes mount, set D2LS_SHARED_PATHS=1"
            )
    store = connection.resolve_uri(recipe.tracking.uri, Path.cwd())
    if connection.sqlite_file(store) is not None:
        raise TrackingError(
            f"tracking.uri: {store} is a local file, the cluster has {cluster.nodes} nodes. Start `mlflow server` and "
            "set tracking.uri or MLFLOW_TRACKING_URI to http://HOST:5000; where it is on a disk that all nodes mount, "
            "set D2LS_SHARED_PATHS=1"
        )


def _way_out(kind: str, capacity: int) -> str:
    if capacity > 0:
        return f"Set cluster.workers={capacity}, or lower cluster.{kind.lower()}s_per_worker"
    return f"Lower cluster.{kind.lower()}s_per_worker, or join a larger cluster by cluster.address"

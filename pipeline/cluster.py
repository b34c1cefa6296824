"""Ray: joining a cluster or starting a local one, what it has, and whether it is enough."""

import contextlib
import logging
import os
import socket
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from d2ls import storage
from d2ls.errors import ResourceError, StorageError, TrackingError
from d2ls.scratch import scratch_folder
from pipeline.capacity import grows_to
from pipeline.config import Recipe
from pipeline.config.train import ClusterConfig

LOOPBACK = "127.0.0.1"
ROOT = Path(__file__).resolve().parents[1]

ADDRESS, GCS_PORT = "RAY_ADDRESS", "RAY_GCS_SERVER_PORT"
SECRETS = ("AWS_", "AZURE_", "GOOGLE_", "HF_", "MLFLOW_")
"""Begin the names of variables that may hold a key or a password."""

LONGEST_ROOT = 16
"""Characters; below it Ray makes sockets, whose paths may have 107, with names of its own of up to 90."""

REACH_SECONDS = 2.0
HEAD_CALL, CLIENT_CALL = "/ray.rpc.NodeInfoGcsService/GetClusterId", "/ray.rpc.RayletDriver/ClusterInfo"
"""Calls without an effect, on a head and on its port for clients; a cluster with tokens refuses them to strangers."""

STARTS = 2
"""How often a local Ray is started before giving up: its own limit of 30 s is short where the machine is busy."""

DEFAULTS = {
    "RAY_TRAIN_V2_ENABLED": "1",
    # The controller looks after the workers this often; `report` may wait as long.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # On a busy machine a worker group may need more than Ray's 60 s; a group that never fits is refused beforehand.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "180",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Environment of driver, controller and workers, where the user has set nothing else."""


@dataclass(frozen=True)
class Cluster:
    """A cluster that this process is connected to.

    Attributes:
        address: where its head listens; empty: no Ray, this process alone.
        nodes: number of live nodes; at least 2 where it can grow.
        cpus: all of them, busy or not, those of nodes that are still to be started among them.
        gpus: likewise.
        started_here: whether this process started it.
    """

    address: str
    nodes: int
    cpus: float
    gpus: float
    started_here: bool

    def use_gpu(self, config: ClusterConfig) -> bool:
        """Says whether workers take GPUs."""
        if config.gpus_per_worker is not None:
            return config.gpus_per_worker > 0
        return self.gpus > 0

    def per_worker(self, config: ClusterConfig) -> dict[str, float]:
        """Resources of one worker."""
        gpus = config.gpus_per_worker or 1.0
        return {"CPU": config.cpus_per_worker, **({"GPU": gpus} if self.use_gpu(config) else {})}

    def capacity(self, config: ClusterConfig) -> int:
        """How many workers the cluster holds at once."""
        have = {"CPU": self.cpus, "GPU": self.gpus}
        return min(int(have[kind] / need + 1e-9) for kind, need in self.per_worker(config).items())

    def describe(self) -> str:
        """Says in a few words what it is."""
        kind = "local Ray" if self.started_here else f"Ray cluster at {self.address}"
        kind = kind if self.address else "this process"
        nodes = f", {self.nodes} nodes" if self.nodes > 1 else ""
        return f"{kind}{nodes}, {self.cpus:g} CPUs, {self.gpus:g} GPUs"


def address_of(config: ClusterConfig) -> str | None:
    """Returns the address of the cluster to join, from the recipe or RAY_ADDRESS; None: Ray is started here."""
    address = config.address or os.environ.get("RAY_ADDRESS")
    return None if address in (None, "", "local") else address


def this_machine() -> Cluster:
    """Returns what a training in this process, or a Ray that is started here, can use. Nothing is started."""
    return Cluster("", 1, float(_cpus()), float(len(_gpus())), started_here=True)


def _cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> list[str]:
    """Names of the GPUs that this process may use, found without importing PyTorch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [each for each in chosen.split(",") if each.strip() not in ("", "-1")]
    return [file.name for file in Path("/dev").glob("nvidia[0-9]*")]


@contextlib.contextmanager
def connect(config: ClusterConfig, *, dashboard: bool = False) -> Iterator[Cluster]:
    """Joins the cluster of the recipe (or of RAY_ADDRESS), or starts a local one and ends it afterwards.

    A process that is connected already (a trial's driver) stays as it is.

    Args:
        config: recipe section.
        dashboard: start Ray's dashboard too. Sweeps need it: what a pruned trial held is freed through it.

    Raises:
        ResourceError: nobody answers at the address.
    """
    before = {name: os.environ.get(name) for name in (ADDRESS, GCS_PORT)}
    address = config.address or before[ADDRESS]
    local = address in (None, "", "local")
    if local:
        # Read when ray is imported: without it Ray turns 127.0.0.1 into the machine's outer address and listens there.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    if ray.is_initialized():
        yield _inventory(started_here=False)
        return
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    _keep_secrets()
    with scratch_folder("ray", root=_scratch_root()) if local else contextlib.nullcontext() as scratch:
        try:
            if scratch:
                _start_local(
                    dashboard, scratch / "r"
                )  # Ray opens its folder to everybody; the one above is private
            else:
                _join(str(address))
                os.environ[ADDRESS] = ray.get_runtime_context().gcs_address
            yield _inventory(started_here=local)
        finally:
            for variable, old in before.items():
                _restore(variable, old)
            ray.shutdown()


def _scratch_root() -> Path:
    """Returns where Ray keeps its files: the system's temporary folder, or /tmp where its path is too long."""
    root = Path(tempfile.gettempdir())
    return root if len(str(root)) <= LONGEST_ROOT else Path("/tmp")  # noqa: S108


def _keep_secrets() -> None:
    """Stops Tune from copying AWS keys into the `runtime_env` of trials, which Ray logs in clear for all to read.

    Workers have them from their node: a local Ray from this process, others from their own environment.
    """
    from ray.tune.execution import class_cache

    class_cache.ENV_VARS_TO_PROPAGATE -= {
        name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith(SECRETS)
    }


def _start_local(dashboard: bool, scratch: Path) -> None:
    """Starts a Ray on this machine that listens on 127.0.0.1 and keeps all its files in one folder."""
    import ray

    logging.getLogger("ray._private.authentication").setLevel(
        logging.ERROR
    )  # a local Ray needs no remark on tokens
    for attempt in range(STARTS):
        before = {child.pid for child in psutil.Process().children()}
        # Ray's processes inherit the address. Without it some look for a cluster, and fail where there are two.
        port = _free_port()
        os.environ.update({GCS_PORT: str(port), ADDRESS: f"{LOOPBACK}:{port}"})
        try:
            with _quiet():
                ray.init(
                    address="local",
                    include_dashboard=dashboard,
                    dashboard_host=LOOPBACK,
                    _node_ip_address=LOOPBACK,
                    _temp_dir=str(scratch),
                    log_to_driver=False,
                    logging_level=logging.WARNING,
                )
            return
        except Exception as error:  # Ray raises a bare Exception where its processes do not come up in time
            for child in psutil.Process().children():
                if child.pid not in before:
                    child.kill()  # what did start of it
            if attempt == STARTS - 1:
                raise ResourceError(
                    f"a local Ray did not start: {error} The machine may be overloaded or out of memory (see `uptime` "
                    "and `python -m pipeline.doctor`); try again, or join a running cluster by cluster.address"
                ) from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _join(address: str) -> None:
    """Joins a running cluster; its nodes get this checkout, so that all run the same code."""
    import ray

    _reach(address)
    packages = [str(ROOT / name) for name in ("d2ls", "sharding", "pipeline")]
    environment = {"py_modules": packages, "env_vars": _forwarded(), "excludes": ["__pycache__"]}
    try:
        with _quiet():
            ray.init(
                address=address, runtime_env=environment, log_to_driver=False, logging_level=logging.WARNING
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ResourceError(
            f"no Ray cluster answers at {address}: {error}. Look with `ray status --address {address}`; unset "
            "cluster.address and RAY_ADDRESS to start a local one. Where the message speaks of tokens, set "
            "RAY_AUTH_MODE=token and the same RAY_AUTH_TOKEN on all machines"
        ) from error


def _reach(address: str) -> None:
    """Refuses at once an address where nobody listens, or whose cluster wants another token; Ray asks for long.

    Raises:
        ResourceError: no connection within two seconds, or no right token.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # `auto`, or a form that Ray knows
    try:
        socket.create_connection((host, int(port)), timeout=REACH_SECONDS).close()
    except OSError as error:
        raise ResourceError(
            f"no Ray cluster answers at {address}: {error}. Start it, or correct cluster.address or RAY_ADDRESS"
        ) from error
    if _wants_token(f"{host}:{port}", CLIENT_CALL if address.startswith("ray://") else HEAD_CALL):
        raise ResourceError(
            f"the Ray cluster at {address} wants a token, and this process has none or another one: set "
            "RAY_AUTH_MODE=token and the RAY_AUTH_TOKEN of that cluster"
        )


def _wants_token(target: str, call: str) -> bool:
    """Returns whether a call with the token of this process, if it has one, is refused for its token."""
    import grpc

    token = os.environ.get("RAY_AUTH_TOKEN")
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if not token and file.is_file():
        token = file.read_text(encoding="utf-8").strip()
    header = (("authorization", f"Bearer {token}"),) if token else None
    with grpc.insecure_channel(target) as channel:
        try:
            channel.unary_unary(call)(b"", timeout=REACH_SECONDS, metadata=header)
        except grpc.RpcError as error:  # any other answer is left to Ray
            return bool(error.code() is grpc.StatusCode.UNAUTHENTICATED)
    return False


def _forwarded() -> dict[str, str]:
    """Returns the settings that workers on other nodes take over from this process.

    Access to storage, tracking and hub is not among them: Ray writes these values into a log that everybody on a node
    may read. It comes from the environment of the node, or from its instance profile.
    """
    prefixes = ("OMP_", "NCCL_", "GLOO_", "TORCH_", "D2LS_")
    # Interfaces are called otherwise on other machines: each node brings its own name.
    own = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    chosen = {key: value for key, value in os.environ.items() if key.startswith(prefixes) and key not in own}
    defaults = {name: os.environ.get(name, value) for name, value in DEFAULTS.items()}
    return {name: value for name, value in {**defaults, **chosen}.items() if not name.startswith(SECRETS)}


def _inventory(*, started_here: bool) -> Cluster:
    import ray

    now = ray.cluster_resources()  # type: ignore[no-untyped-call]
    resources = now if started_here else grows_to(now)
    nodes = sum(bool(node["Alive"]) for node in ray.nodes())  # type: ignore[no-untyped-call]
    if any(resources[kind] > now.get(kind, 0.0) for kind in ("CPU", "GPU") if kind in resources):
        nodes = max(nodes, 2)  # there will be others
    address = ray.get_runtime_context().gcs_address
    return Cluster(address, nodes, resources.get("CPU", 0.0), resources.get("GPU", 0.0), started_here)


def check_resources(recipe: Recipe, cluster: Cluster) -> None:
    """Refuses what the cluster cannot give, before anything is started.

    Raises:
        ResourceError: too few CPUs or GPUs, with the arithmetic.
        StorageError: a local location on more than one node.
        TrackingError: an MLflow store in a file on more than one node.
    """
    need = cluster.per_worker(recipe.cluster)
    fewest = recipe.cluster.worker_range[0]
    have = {"CPU": cluster.cpus, "GPU": cluster.gpus}
    for kind, each in need.items():
        if fewest * each > have[kind] + 1e-9:
            raise ResourceError(
                f"cluster.workers={recipe.cluster.workers_text} x {each:g} {kind} = {fewest * each:g} {kind}, "
                f"the {cluster.describe()} has {have[kind]:g}. "
                + _way_out(kind, cluster.capacity(recipe.cluster))
            )
    check_shared(recipe, cluster)


def check_shared(recipe: Recipe, cluster: Cluster) -> None:
    """Refuses local locations where there is more than one node.

    Raises:
        StorageError: storage or shards; names the key. D2LS_SHARED_PATHS=1 says that the path is a shared disk.
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
    from pipeline.tracking import connection

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


def _restore(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Ray's remarks on future defaults off the screen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield

"""Joins a Ray cluster, or starts a local Ray and ends it."""

import contextlib
import logging
import os
import socket
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import psutil

from d2ls.errors import ResourceError
from d2ls.scratch import scratch_folder
from pipeline.cluster import ray_internals
from pipeline.cluster.growth import grows_to
from pipeline.cluster.resources import Cluster
from pipeline.config.train import ClusterConfig

LOOPBACK = "127.0.0.1"
ROOT = Path(__file__).resolve().parents[2]

ADDRESS, GCS_PORT = "RAY_ADDRESS", "RAY_GCS_SERVER_PORT"

STARTS = 2
"""Attempts to start a local Ray: its limit of 30 s is short on a busy machine."""

DEFAULTS = {
    "RAY_TRAIN_V2_ENABLED": "1",
    # Interval at which the controller polls the workers; `report` may wait as long.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # On a busy machine a worker group may need more than Ray's 60 s; a group that never fits is refused beforehand.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "180",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Environment of driver, controller and workers, unless the user has set these variables."""


@contextlib.contextmanager
def connect(config: ClusterConfig, *, dashboard: bool = False) -> Iterator[Cluster]:
    """Joins the cluster of the recipe (or of RAY_ADDRESS), or starts a local one and ends it afterwards.

    A process that is connected already stays as it is: a worker of Ray, a notebook that called `ray.init`.

    Args:
        config: recipe section.
        dashboard: start Ray's dashboard too. Sweeps need it to free the resources of a pruned trial.

    Raises:
        ResourceError: no cluster answers at the address, or this process is connected to another one.
    """
    before = {name: os.environ.get(name) for name in (ADDRESS, GCS_PORT)}
    address = config.address or before[ADDRESS]
    local = address in (None, "", "local")
    if local:
        # Read when ray is imported: without it Ray turns 127.0.0.1 into the machine's outer address and listens there.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    if ray.is_initialized():
        _check_same(config.address)
        yield _inventory(started_here=False)
        return
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    ray_internals.keep_secrets()
    with scratch_folder("ray", root=_scratch_root()) if local else contextlib.nullcontext() as scratch:
        try:
            if scratch:
                _start_local(dashboard, scratch / "r")  # all may read Ray's folder; the one above is private
            else:
                _join(str(address))
                os.environ[ADDRESS] = ray.get_runtime_context().gcs_address
            yield _inventory(started_here=local)
        finally:
            for variable, old in before.items():
                _restore(variable, old)
            ray.shutdown()


def _check_same(address: str | None) -> None:
    """Checks that a driver that is connected already is connected to the cluster of the recipe (`host:port`)."""
    import ray

    context = ray.get_runtime_context()
    host, _, port = str(address).rpartition(":")
    if not host or not port.isdigit() or "//" in host or context.get_actor_id():
        return  # another form that Ray parses, or a worker of Ray
    own_host, _, own_port = context.gcs_address.rpartition(":")
    if (_ip(host), port) != (_ip(own_host), own_port):
        raise ResourceError(
            f"this process is connected to the Ray cluster at {context.gcs_address}, but cluster.address is {address}. "
            "Call ray.shutdown() first, or leave cluster.address out"
        )


def _ip(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError:
        return host


def _scratch_root() -> Path:
    """Returns the folder for Ray's files: the system's temporary folder, or /tmp if its path is too long."""
    root = Path(tempfile.gettempdir())
    return root if len(str(root)) <= ray_internals.LONGEST_ROOT else Path("/tmp")  # noqa: S108


def _start_local(dashboard: bool, scratch: Path) -> None:
    """Starts a Ray on this machine that listens on 127.0.0.1 and keeps all its files in one folder."""
    import ray

    ray_internals.hide_token_remark()
    for attempt in range(STARTS):
        before = {child.pid for child in psutil.Process().children()}
        # Ray's processes inherit the address. Without it some search for a cluster, and fail if there are two.
        port = _free_port()
        os.environ.update({GCS_PORT: str(port), ADDRESS: f"{LOOPBACK}:{port}"})
        try:
            with _quiet():
                ray.init(
                    address="local",
                    include_dashboard=dashboard,
                    dashboard_host=LOOPBACK,
                    log_to_driver=False,
                    logging_level=logging.WARNING,
                    **ray_internals.start_options(LOOPBACK, scratch),
                )
            return
        except Exception as error:  # Ray raises a bare Exception if its processes do not start in time
            for child in psutil.Process().children():
                if child.pid not in before:
                    child.kill()  # stops the processes that did start
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
    """Checks that a cluster answers at an address and accepts the token. Ray alone would try for minutes.

    Raises:
        ResourceError: no connection within two seconds, or a wrong token.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # `auto`, or another form that Ray parses
    try:
        socket.create_connection((host, int(port)), timeout=ray_internals.REACH_SECONDS).close()
    except OSError as error:
        raise ResourceError(
            f"no Ray cluster answers at {address}: {error}. Start it, or correct cluster.address or RAY_ADDRESS"
        ) from error
    if ray_internals.wants_token(f"{host}:{port}", client=address.startswith("ray://")):
        raise ResourceError(
            f"the Ray cluster at {address} wants a token, and this process has none or another one: set "
            "RAY_AUTH_MODE=token and the RAY_AUTH_TOKEN of that cluster"
        )


def _forwarded() -> dict[str, str]:
    """Returns the settings that workers on other nodes take over from this process.

    Keys of storage, tracking and hub are not forwarded, because Ray writes these values into a log that every user of a
    node can read. Workers get them from the environment of the node, or from its instance profile.
    """
    prefixes = ("OMP_", "NCCL_", "GLOO_", "TORCH_", "PYTORCH_", "CUBLAS_", "D2LS_")
    # Names of network interfaces differ between machines, so each node sets its own.
    per_node = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    chosen = {
        key: value for key, value in os.environ.items() if key.startswith(prefixes) and key not in per_node
    }
    defaults = {name: os.environ.get(name, value) for name, value in DEFAULTS.items()}
    return {
        name: value
        for name, value in {**defaults, **chosen}.items()
        if not name.startswith(ray_internals.SECRETS)
    }


def _inventory(*, started_here: bool) -> Cluster:
    import ray

    now = ray.cluster_resources()  # type: ignore[no-untyped-call]
    resources = now if started_here else grows_to(now)
    nodes = sum(bool(node["Alive"]) for node in ray.nodes())  # type: ignore[no-untyped-call]
    if any(resources[kind] > now.get(kind, 0.0) for kind in ("CPU", "GPU") if kind in resources):
        nodes = max(nodes, 2)  # the autoscaler will add others
    address = ray.get_runtime_context().gcs_address
    return Cluster(address, nodes, resources.get("CPU", 0.0), resources.get("GPU", 0.0), started_here)


def _restore(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides Ray's warnings about future defaults."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield

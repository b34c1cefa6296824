"""The checks of `doctor`: machine, cluster, storage, shards and tracking. A finding tells how to fix the problem."""

import os
import platform
import shutil
from collections.abc import Callable, Iterable
from importlib import metadata
from typing import Any

import psutil

from d2ls import storage
from d2ls.errors import D2LSError, StorageError
from d2ls.scratch import remove_abandoned
from pipeline import cluster
from pipeline.checks import Finding, check_backbone, check_shards, check_storage
from pipeline.cluster import Cluster
from pipeline.config import Recipe
from pipeline.tracking import Store, connection
from pipeline.training import tracked_run
from pipeline.training.run_folder import default_storage

PACKAGES = ("torch", "timm", "ray", "mlflow", "pyarrow", "webdataset", "albumentations", "numpy")


def examine(recipe: Recipe | None) -> Iterable[Finding]:
    """Yields the findings of all checks; without a recipe, of those that need none."""
    yield check_versions()
    yield check_memory_disk()
    try:
        recipe = recipe.anchored() if recipe else None
    except StorageError as error:  # a password in a location; nothing may read it
        yield Finding("storage", "error", str(error))
        return
    yield from check_leftovers(recipe)
    if recipe is None:
        yield from _guarded("tracking", lambda: check_tracking(None))
        return
    yield from _guarded("tracking", lambda: check_tracking(recipe))
    yield from _guarded("storage", lambda: [check_storage(recipe.output_dir)])
    yield from _guarded("shards", lambda: check_shards(recipe))
    yield from _guarded("model", lambda: [check_backbone(recipe)])
    yield from _guarded("cluster", lambda: check_cluster(recipe))


def _guarded(what: str, check: Callable[[], Iterable[Finding]]) -> Iterable[Finding]:
    """Turns an error of this project into a finding, so that the other checks still run."""
    try:
        yield from check()
    except D2LSError as error:
        yield Finding(what, "error", str(error))


def check_versions() -> Finding:
    """Reports the versions of the main packages on this machine."""
    return Finding("versions", "ok", describe_versions(versions()))


def versions() -> dict[str, str]:
    """Returns installed versions by package, with that of Python and of this project."""
    installed = {"python": platform.python_version()}
    for name in ("d2ls-pipeline", *PACKAGES):
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed[name] = "missing"
    return installed


def describe_versions(installed: dict[str, str]) -> str:
    """Returns versions as one line."""
    return ", ".join(f"{name} {version}" for name, version in installed.items())


def check_memory_disk() -> Finding:
    """Reports CPUs, memory and temporary disk."""
    memory, disk = psutil.virtual_memory().available / 2**30, shutil.disk_usage("/tmp").free / 2**30  # noqa: S108
    text = f"{os.cpu_count()} CPUs, {memory:.1f} GiB of memory free, {disk:.1f} GiB free below /tmp"
    if memory < 4:
        return Finding(
            "machine", "warning", f"{text}; Ray and a training worker need 4 GiB: end other programs"
        )
    return Finding("machine", "ok", text)


def check_leftovers(recipe: Recipe | None) -> list[Finding]:
    """Removes temporary folders of killed processes, in the system's temporary folder and below local runs."""
    uri = recipe.output_dir if recipe else default_storage()
    runs = storage.local_path(uri).glob("*/checkpoints") if storage.is_local(uri) else ()
    removed = [folder for root in (None, *runs) for folder in remove_abandoned(root)]
    names = ", ".join(map(str, removed))
    return [Finding("left over", "ok", f"removed, their processes are gone: {names}")] if removed else []


def check_tracking(recipe: Recipe | None) -> list[Finding]:
    """Opens the tracking store, and completes runs whose process died or whose store was unavailable."""
    store = Store.open(recipe.tracking if recipe else None)
    answers = Finding("tracking", "ok", f"{connection.shown(store.uri)} answers")
    return [answers, *check_runs(store, recipe.output_dir if recipe else default_storage())]


def check_runs(store: Store, storage_uri: str) -> list[Finding]:
    """Sends waiting log entries of run folders to MLflow, and ends runs there in the state of their folders."""
    findings = []
    for folder in tracked_run.unsettled(storage_uri):
        metadata = folder.metadata()
        try:
            sent = tracked_run.settle(store, folder)
        except D2LSError as error:
            here = connection.shown(store.uri)
            other = connection.shown(metadata.get("store", here))
            way = f"; it was logged to {other}: set tracking.uri to that" if other != here else ""
            findings.append(Finding("runs", "error", f"{folder.name}: {error}{way}"))
            continue
        words = (
            f"{folder.name}: {sent} waiting log entries sent to MLflow; it is {metadata['state']} there too"
        )
        more = f" ({metadata['reason']}); go on with --resume {folder.name}" if metadata.get("reason") else ""
        findings.append(Finding("runs", "warning", words + more))
    return findings


def check_cluster(recipe: Recipe) -> Iterable[Finding]:
    """Joins or starts Ray; checks its resources, and versions and storage on every node."""
    with cluster.connect(recipe.cluster) as connected:
        cluster.check_resources(recipe, connected)
        holds = connected.capacity(recipe.cluster)
        yield Finding(
            "cluster",
            "ok",
            f"{connected.describe()}; holds {holds} worker(s), {recipe.cluster.workers_text} requested",
        )
        yield from check_nodes(recipe, connected)


def check_nodes(recipe: Recipe, connected: Cluster) -> list[Finding]:
    """Asks every node for its versions and whether it can use storage and shards."""
    here = versions()
    findings = []
    for name, answer in _ask_nodes(recipe).items():
        differing = {key: value for key, value in answer["versions"].items() if here.get(key) != value}
        if differing:
            ours = describe_versions({key: here[key] for key in differing})
            text = f"{describe_versions(differing)} there, {ours} here: install the versions of constraints.txt on all"
            findings.append(Finding(f"node {name}", "error", text))
        findings.extend(Finding(f"node {name}", "error", problem) for problem in answer["problems"])
    if not findings:
        findings.append(
            Finding("nodes", "ok", f"{connected.nodes} alike, storage and shards reachable from each")
        )
    return findings


def _ask_nodes(recipe: Recipe) -> dict[str, dict[str, Any]]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0)(examine_node)
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    answers = {
        node["NodeManagerAddress"]: remote.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(recipe.output_dir, recipe.shards.uri)
        for node in alive
    }
    return {name: ray.get(answer) for name, answer in answers.items()}


def examine_node(storage_uri: str, shards_uri: str) -> dict[str, Any]:
    """Returns the versions of the node that it runs on, and problems with storage and shards from there."""
    problems = []
    try:
        check_storage(storage_uri)
    except StorageError as error:
        problems.append(str(error))
    if not storage.exists(storage.join(shards_uri, "card.json")):
        problems.append(
            f"shards.uri={shards_uri} is not there; put the shards on storage that all nodes share"
        )
    return {"versions": versions(), "problems": problems}

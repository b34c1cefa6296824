"""`python -m pipeline.doctor [RECIPE ...]`: looks at machine, cluster, storage, shards and tracking before one starts.

Every line says what was looked at and, where something is wrong, the fix. The cheap part also runs before training.
"""

import os
import platform
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal

from d2ls import storage
from d2ls.errors import ConfigError, D2LSError, ShardError, StorageError
from d2ls.scratch import remove_abandoned
from pipeline import cli
from pipeline.config import Recipe, load_recipe

if TYPE_CHECKING:
    from d2ls.shards import ShardSet
    from pipeline.cluster import Cluster
    from pipeline.tracking import Store

EXAMPLES = """\
  python -m pipeline.doctor                       # this machine: versions, tracking store, unfinished runs
  python -m pipeline.doctor loveda                # and whether this recipe can be trained here
  python -m pipeline.doctor loveda cluster.address=auto output_dir=s3://bucket/runs   # from every node of a cluster
"""

PACKAGES = ("torch", "timm", "ray", "mlflow", "pyarrow", "webdataset", "albumentations", "numpy")
Status = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        what: what was looked at.
        status: `ok`, `warning` (works, but look at it) or `error` (a run would fail).
        text: what was found, with the fix where there is something to fix.
    """

    what: str
    status: Status
    text: str

    def line(self) -> str:
        """Returns the line as it is printed."""
        return f"{self.status:8}{self.what:12}{self.text}"


def quick(recipe: Recipe) -> list[Finding]:
    """The cheap part: shards, roles, storage, and the library of a baseline, from this process. Nothing is started.

    Raises:
        D2LSError: the first thing that would make a run fail.
    """
    check_architecture(recipe)
    shards = _open_shards(recipe)
    return [*check_roles(recipe, shards), check_storage(recipe.output_dir)]


def examine(recipe: Recipe | None) -> Iterable[Finding]:
    """Looks at everything, one finding after the other; without a recipe at what needs none."""
    yield check_versions()
    yield check_memory_disk()
    yield from check_leftovers(recipe)
    if recipe is None:
        yield from _guarded("tracking", lambda: check_tracking(None))
        return
    recipe = recipe.anchored()
    yield from _guarded("tracking", lambda: check_tracking(recipe))
    yield from _guarded("storage", lambda: [check_storage(recipe.output_dir)])
    yield from _guarded("shards", lambda: check_roles(recipe, _open_shards(recipe)))
    yield from _guarded("model", lambda: [check_backbone(recipe)])
    yield from _guarded("cluster", lambda: check_cluster(recipe))


def _guarded(what: str, check: Callable[[], Iterable[Finding]]) -> Iterable[Finding]:
    """Turns an error of ours into a line, so that the other checks follow."""
    try:
        yield from check()
    except D2LSError as error:
        yield Finding(what, "error", str(error))


def check_versions() -> Finding:
    """Names the versions of what matters, on this machine."""
    return Finding("versions", "ok", describe_versions(versions()))


def versions() -> dict[str, str]:
    """Returns installed versions by package, with that of Python and of this project."""
    found = {"python": platform.python_version()}
    for name in ("d2ls-pipeline", *PACKAGES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def describe_versions(found: dict[str, str]) -> str:
    """Says versions in a line."""
    return ", ".join(f"{name} {version}" for name, version in found.items())


def check_memory_disk() -> Finding:
    """Says how many CPUs, how much memory and how much temporary disk there is."""
    import psutil

    memory, disk = psutil.virtual_memory().available / 2**30, shutil.disk_usage("/tmp").free / 2**30  # noqa: S108
    text = f"{os.cpu_count()} CPUs, {memory:.1f} GiB of memory free, {disk:.1f} GiB free below /tmp"
    if memory < 4:
        return Finding(
            "machine", "warning", f"{text}; Ray and a training worker want 4 GiB: end other programs"
        )
    return Finding("machine", "ok", text)


def check_leftovers(recipe: Recipe | None) -> list[Finding]:
    """Removes temporary folders of processes that were killed: in the temporary folder and below local runs."""
    from pipeline.training.run_folder import default_storage

    uri = recipe.anchored().output_dir if recipe else default_storage()
    runs = storage.local_path(uri).glob("*/checkpoints") if storage.is_local(uri) else ()
    removed = [folder for root in (None, *runs) for folder in remove_abandoned(root)]
    names = ", ".join(map(str, removed))
    return [Finding("left over", "ok", f"removed, their processes are gone: {names}")] if removed else []


def check_tracking(recipe: Recipe | None) -> list[Finding]:
    """Opens the tracking store, and completes the runs of dead processes and of times when it was away."""
    from pipeline.tracking import Store
    from pipeline.training.run_folder import default_storage

    store = Store.open(recipe.tracking if recipe else None)
    answers = Finding("tracking", "ok", f"{store.uri} answers")
    return [answers, *check_runs(store, recipe.output_dir if recipe else default_storage())]


def check_runs(store: "Store", storage_uri: str) -> list[Finding]:
    """Sends what waits in the run folders below a storage, and ends runs in MLflow as their folders ended."""
    from pipeline.training import tracked_run

    findings = []
    for folder in tracked_run.unsettled(storage_uri):
        facts = folder.metadata()
        try:
            sent = tracked_run.settle(store, folder)
        except D2LSError as error:
            other = facts.get("store", store.uri)
            way = f"; it was logged to {other}: set tracking.uri to that" if other != store.uri else ""
            findings.append(Finding("runs", "error", f"{folder.name}: {error}{way}"))
            continue
        words = f"{folder.name}: {sent} log entries that waited were sent to MLflow; it is {facts['state']} there too"
        more = f" ({facts['reason']}); go on with --resume {folder.name}" if facts.get("reason") else ""
        findings.append(Finding("runs", "warning", words + more))
    return findings


def check_storage(uri: str) -> Finding:
    """Writes, reads and deletes a small file.

    Raises:
        StorageError: one of these fails; names the way out.
    """
    probe, content = storage.join(uri, f".probe-{uuid.uuid4().hex}"), uuid.uuid4().bytes
    try:
        storage.make_folder(uri)
        storage.write_bytes(probe, content)
        if storage.read_bytes(probe) != content:
            raise StorageError(f"{probe}: what was written is not what is read")
        storage.delete(probe)
    except StorageError as error:
        raise StorageError(
            f"output_dir={uri} cannot be used: {error}. Mend access, or set another output_dir"
        ) from error
    free = ""
    if storage.is_local(uri):
        free = f", {shutil.disk_usage(storage.local_path(uri)).free / 2**30:.1f} GiB free"
    return Finding("storage", "ok", f"{uri} can be written and read{free}")


def _open_shards(recipe: Recipe) -> "ShardSet":
    from d2ls.shards import ShardSet

    return ShardSet.open(recipe.shards.uri)


def check_roles(recipe: Recipe, shards: "ShardSet") -> list[Finding]:
    """Looks whether the splits of the roles exist, hold samples, and share no scene.

    Raises:
        ShardError: no such split, or an empty one.
        ConfigError: two roles share scenes, unless the data set's own protocol has it so.
    """
    roles = {"train": recipe.roles.train, "val": recipe.roles.val, "test": recipe.roles.test}
    scenes: dict[str, set[str]] = {}
    for role, split in roles.items():
        if role == "test" and split not in shards.splits:
            continue  # e.g. a test split whose labels are withheld; evaluation will say so
        rows = shards.rows(split)
        if not len(rows):
            raise ShardError(
                f"{shards.uri}: split {split!r} (roles.{role}) holds no sample; shard the data again"
            )
        scenes[role] = set(rows["scene"].to_pylist())
    shared = [
        (first, second, sorted(scenes[first] & scenes[second]))
        for first, second in (("train", "val"), ("train", "test"), ("val", "test"))
        if first in scenes and second in scenes and scenes[first] & scenes[second]
    ]
    counts = ", ".join(
        f"{shards.card.splits[split].samples} {split}" for split in roles.values() if split in shards.splits
    )
    findings = [Finding("shards", "ok", f"{shards.uri}: {shards.card.name}, samples: {counts}")]
    for first, second, names in shared:
        text = (
            f"roles.{first}={roles[first]} and roles.{second}={roles[second]} share {len(names)} scene(s), "
            f"e.g. {names[0]}: scores would flatter"
        )
        if shards.card.protocol != "paper":
            raise ConfigError(f"{text}. Split by scene: data.protocol=clean, or another split in roles")
        findings.append(Finding("roles", "warning", f"{text}; the paper protocol has it so"))
    return findings


def check_architecture(recipe: Recipe) -> None:
    """Refuses a baseline whose library is missing on this machine."""
    if recipe.model.architecture != "d2ls":
        from d2ls.models.baselines import check_library

        check_library(recipe.model.architecture)


def check_backbone(recipe: Recipe) -> Finding:
    """Looks whether the network can be built here, and the backbone's weights be had."""
    import timm

    check_architecture(recipe)
    name = recipe.model.backbone
    if not timm.is_model(name.split(".")[0]):
        close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:8])
        raise ConfigError(f"model.backbone={name}: timm knows no such backbone; some it knows: {close}")
    if recipe.model.weights and not storage.exists(recipe.model.weights):
        raise ConfigError(f"model.weights={recipe.model.weights}: no such file")
    source = "timm's weights, fetched on first use" if recipe.model.pretrained else "no pretrained weights"
    return Finding("model", "ok", f"{recipe.model.architecture}, {name}, {recipe.model.weights or source}")


def check_cluster(recipe: Recipe) -> Iterable[Finding]:
    """Joins or starts Ray, and looks at resources, and at versions and storage on every node."""
    from pipeline import cluster

    with cluster.connect(recipe.cluster) as connected:
        cluster.check_resources(recipe, connected)
        holds = connected.capacity(recipe.cluster)
        yield Finding(
            "cluster",
            "ok",
            f"{connected.describe()}; holds {holds} worker(s), {recipe.cluster.workers_text} wanted",
        )
        yield from check_nodes(recipe, connected)


def check_nodes(recipe: Recipe, connected: "Cluster") -> list[Finding]:
    """Asks every node for its versions, and whether it can use storage and shards."""
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
    """Runs on a node: its versions, and what is wrong with storage and shards from there."""
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the findings; the exit status is 1 where a run would fail."""
    parser = cli.parser("pipeline.doctor", __doc__.split(": ", 1)[1].splitlines()[0].capitalize(), EXAMPLES)
    parser.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help="recipe file, or the name of one in recipes/"
    )
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="change any key of the recipe")
    given = parser.parse_args(arguments)
    recipe = load_recipe(given.recipe, given.overrides) if given.recipe else None
    failed = False
    for finding in examine(recipe):
        failed = failed or finding.status == "error"
        print(finding.line(), file=sys.stdout, flush=True)  # noqa: T201
    return int(failed)


if __name__ == "__main__":
    cli.run_command(main)

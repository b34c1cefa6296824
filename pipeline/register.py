"""`python -m pipeline.register RUN`: the model of any run goes into the registry, alias `challenger`."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from d2ls import storage
from d2ls.errors import ConfigError, TrackingError
from pipeline.cli import add_workers, parser, run_command, scoring_cluster

if TYPE_CHECKING:
    from d2ls.shards import DatasetCard
    from pipeline.config import Recipe
    from pipeline.config.train import ClusterConfig
    from pipeline.tracking import ModelVersion, Store
    from pipeline.training.run_folder import RunFolder

DESCRIPTION = (
    "Registers the model of a run as a new version, with model card, signature and evaluation report, and gives it the "
    "alias `challenger`. RUN is a run folder, or the name or MLflow id of a run below --output-dir: weights, recipe "
    "and MLflow run all come from that folder. The same weights are registered once."
)
EXAMPLES = """\
  python -m pipeline.register loveda-20260301-120000-ab12           best checkpoint, evaluated on the test split
  python -m pipeline.register runs/lo1-final --checkpoint last --name d2ls-trial
  python -m pipeline.register 3f2b8c... --no-evaluation              by MLflow id, without scores
  python -m pipeline.register s3://bucket/runs/lo1-final --workers 4   scored on four Ray workers
  python -m pipeline.promote d2ls-loveda                             then: champion, if it scores better
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses, registers, says what to do next."""
    given = _parser().parse_args(arguments)
    version = register_run(
        given.run,
        storage_uri=given.output_dir,
        store_uri=given.tracking_uri,
        name=given.name,
        checkpoint=given.checkpoint,
        evaluate=given.evaluation,
        workers=given.workers,
        address=given.address,
    )
    _say(f"{version.uri} is registered, alias challenger")
    _say(f"make it champion if it is better:  python -m pipeline.promote {version.name}")


def register_run(
    run: str,
    *,
    storage_uri: str | None = None,
    store_uri: str | None = None,
    name: str | None = None,
    checkpoint: str = "best",
    evaluate: bool = True,
    workers: int | None = None,
    address: str | None = None,
) -> "ModelVersion":
    """Registers the model of a run.

    Args:
        run: location of a run folder, or name or MLflow id of a run below the storage.
        storage_uri: folder of the run folders; None: where recipes put them unless they say otherwise.
        store_uri: MLflow store; None: the one that the run was logged to.
        name: registered model; None: as the run's recipe says.
        checkpoint: `best`, `last`, or the location of a folder with a model of this run.
        evaluate: whether to score it on the test split first.
        workers: Ray workers of the recipe's size to score it on; without number and address: this process.
        address: Ray cluster to score it on.

    Raises:
        ConfigError: no such run.
        TrackingError: it left no checkpoint, or what lies there does not belong together.
    """
    folder = find_run(run, storage_uri)
    facts, recipe = folder.metadata(), folder.recipe()
    store = _store(facts, recipe, store_uri)
    card = _card(recipe)
    if facts.get("run_id"):
        store.own_run(
            facts["run_id"], recipe, folder.name,
            folder=folder.uri, folder_before=facts.get("folder", ""), store_before=facts.get("store", ""),
        )  # fmt: skip
    uri, step = _checkpoint(folder, checkpoint)
    where = scoring_cluster(recipe, workers, address)
    evaluation = _evaluate(uri, recipe, store, where) if evaluate else None
    run_id = facts.get("run_id") or _new_run(store, recipe, card, folder)
    return store.register(
        run_id, uri, name or recipe.model_name, card=card, evaluation=evaluation, recipe=recipe, step=step
    )


def _new_run(store: "Store", recipe: "Recipe", card: "DatasetCard", folder: "RunFolder") -> str:
    """Opens the MLflow run of a training that was not tracked, or whose run was deleted for good."""
    from pipeline.training import tracked_run

    run_id = tracked_run.open_run(store, recipe, card, folder, "training")
    tracked_run.settle(store, folder)
    return run_id


def find_run(run: str, storage_uri: str | None = None) -> "RunFolder":
    """Returns the folder of a run, named by its location, or by name or MLflow id below a storage.

    Raises:
        ConfigError: there is none; names the newest.
    """
    from pipeline.training.run_folder import RunFolder, absolute, default_storage, run_folders

    root = absolute(storage_uri or default_storage())
    for uri in (absolute(run), storage.join(root, run)):
        if storage.exists(storage.join(uri, "run.json")):
            return RunFolder(uri, uri.rstrip("/").rsplit("/", 1)[-1])
    known = {folder.name: folder.metadata() for folder in run_folders(root)}
    for name, facts in known.items():
        if facts.get("run_id") == run:
            return RunFolder(storage.join(root, name), name)
    newest = sorted(known, key=lambda name: known[name].get("created", 0.0), reverse=True)[:5]
    raise ConfigError(
        f"no run {run!r} below {root}. Newest runs there: {', '.join(newest) or 'none'}. Name the run folder, or the "
        "folder that holds it: --output-dir FOLDER"
    )


def _store(facts: dict[str, Any], recipe: "Recipe", uri: str | None) -> "Store":
    """Opens the store that a run was logged to."""
    from pipeline.config.tracking import TrackingConfig
    from pipeline.tracking import Store, connection

    uri = uri or facts.get("store")
    file = connection.sqlite_file(uri or "")
    if file is not None and not file.is_file() and uri == facts.get("store"):
        uri = recipe.tracking.uri  # the project was moved: as for a new run
    return Store.open(TrackingConfig(uri=uri), create=False)


def _checkpoint(folder: "RunFolder", wanted: str) -> tuple[str, int]:
    """Returns location and optimizer step of a checkpoint of a run."""
    if wanted not in ("best", "last"):
        return wanted, 0
    from d2ls.training.checkpoint_files import complete_checkpoints

    best = folder.best() if wanted == "best" else None
    if best:
        return str(best["uri"]), int(best.get("step", 0))
    found = complete_checkpoints(folder.checkpoints)
    if not found:
        raise TrackingError(
            f"run {folder.name}: no complete checkpoint in {folder.checkpoints}. Did it end its first epoch? Go on "
            f"with `python -m pipeline.train --resume {folder.name}`, or name one: --checkpoint FOLDER (a sweep has "
            "none: register one of its trials)"
        )
    return found[-1].uri, int(getattr(found[-1], "step", 0))


def _evaluate(uri: str, recipe: "Recipe", store: "Store", where: "ClusterConfig | None") -> dict[str, Any]:
    from pipeline.evaluation.run import evaluate_recipe

    _say(f"evaluating {uri} on {recipe.roles.test}")
    return evaluate_recipe(recipe, uri, cluster=where, tracking_uri=store.uri).to_dict()


def _card(recipe: "Recipe") -> "DatasetCard":
    from d2ls.shards import ShardSet

    return ShardSet.open(recipe.shards.uri).card


def _parser() -> argparse.ArgumentParser:
    arguments = parser("pipeline.register", DESCRIPTION, EXAMPLES)
    arguments.add_argument("run", metavar="RUN", help="run folder, or name or MLflow id of a run")
    arguments.add_argument(
        "--output-dir", metavar="FOLDER", help="folder of the run folders (default: runs, as in recipes)"
    )
    arguments.add_argument("--name", help="registered model (default: as the run's recipe says)")
    arguments.add_argument(
        "--checkpoint", default="best", metavar="best|last|FOLDER", help="which weights (default: best)"
    )
    arguments.add_argument(
        "--no-evaluation", dest="evaluation", action="store_false", help="do not score it on the test split"
    )
    add_workers(arguments)
    arguments.add_argument(
        "--tracking-uri", metavar="URI", help="MLflow store (default: the one that the run was logged to)"
    )
    return arguments


def _say(text: str) -> None:
    print(text)  # noqa: T201


if __name__ == "__main__":
    run_command(main)

"""`python -m pipeline.register RUN`: the model of any run goes into the registry, alias `challenger`."""

import argparse
from typing import TYPE_CHECKING, Any

from d2ls.errors import TrackingError
from pipeline.cli import add_workers, parser, run_command, scoring_cluster

if TYPE_CHECKING:
    from d2ls.shards import DatasetCard
    from pipeline.config import Recipe
    from pipeline.config.train import ClusterConfig
    from pipeline.tracking import ModelVersion, Store

DESCRIPTION = (
    "Registers the model of a run as a new version, with model card, signature and evaluation report, and gives it the "
    "alias `challenger`. RUN is a run's name or MLflow id. The same weights are registered once."
)
EXAMPLES = """\
  python -m pipeline.register loveda-20260301-120000-ab12           best checkpoint, evaluated on the report split
  python -m pipeline.register loveda-20260301-120000-ab12 --checkpoint last --name d2ls-trial
  python -m pipeline.register 3f2b8c... --no-evaluation              by MLflow id, without scores
  python -m pipeline.register lo1-final --address ray://head:10001   scored on the recipe's workers there
  python -m pipeline.promote d2ls-loveda                             then: champion, if it scores better
"""


def main() -> None:
    """Parses, registers, says what to do next."""
    arguments = _parser().parse_args()
    from pipeline.config.tracking import TrackingConfig
    from pipeline.tracking import Store

    store = Store.open(TrackingConfig(uri=arguments.store), create=False)
    version = register_run(
        store,
        arguments.run,
        name=arguments.name,
        checkpoint=arguments.checkpoint,
        evaluate=arguments.evaluation,
        workers=arguments.workers,
        address=arguments.address,
    )
    _say(f"{version.uri} is registered, alias challenger")
    _say(f"make it champion if it is better:  python -m pipeline.promote {version.name}")


def register_run(
    store: "Store",
    run: str,
    *,
    name: str | None = None,
    checkpoint: str = "best",
    evaluate: bool = True,
    workers: int | None = None,
    address: str | None = None,
) -> "ModelVersion":
    """Registers the model of a run.

    Args:
        store: where the run and the registry are.
        run: name or MLflow id.
        name: registered model; None: as the run's recipe says.
        checkpoint: `best`, `last`, or the location of a folder with a model.
        evaluate: whether to score it on the report split first.
        workers: Ray workers of the recipe's size to score it on; without number and address: this process.
        address: Ray cluster to score it on.

    Raises:
        TrackingError: no such run, or it left no checkpoint.
    """
    row = store.find(run)
    recipe = store.recipe(row.run_id)
    uri, step = _checkpoint(row.name, store.run_folder(row), checkpoint)
    where = scoring_cluster(recipe, workers, address)
    evaluation = _evaluate(uri, recipe, store, where) if evaluate else None
    card = _card(recipe)
    return store.register(
        row.run_id, uri, name or recipe.model_name, card=card, evaluation=evaluation, recipe=recipe, step=step
    )


def _checkpoint(name: str, folder_uri: str | None, wanted: str) -> tuple[str, int]:
    """Returns location and optimizer step of a checkpoint of a run."""
    if wanted not in ("best", "last"):
        return wanted, 0
    if not folder_uri:
        raise TrackingError(
            f"run {name}: no run folder is noted; name a checkpoint: --checkpoint FOLDER (a sweep has none, register "
            "one of its trials)"
        )
    from d2ls.training.found import complete_checkpoints
    from pipeline.training.run_folder import RunFolder

    folder = RunFolder(folder_uri, name)
    best = folder.best() if wanted == "best" else None
    if best:
        return str(best["uri"]), int(best.get("step", 0))
    found = complete_checkpoints(folder.checkpoints)
    if not found:
        raise TrackingError(
            f"run {name}: no complete checkpoint in {folder.checkpoints}. Did it end its first epoch? Go on with "
            f"`python -m pipeline.train --resume {name}`, or name one: --checkpoint FOLDER"
        )
    return found[-1].uri, int(getattr(found[-1], "step", 0))


def _evaluate(uri: str, recipe: "Recipe", store: "Store", where: "ClusterConfig | None") -> dict[str, Any]:
    from pipeline.evaluate import evaluate_report

    _say(f"evaluating {uri} on {recipe.roles.report}")
    return evaluate_report(recipe, uri, cluster=where, tracking_uri=store.uri).to_dict()


def _card(recipe: "Recipe") -> "DatasetCard":
    from d2ls.shards import ShardSet

    return ShardSet.open(recipe.shards.uri).card


def _parser() -> argparse.ArgumentParser:
    arguments = parser("pipeline.register", DESCRIPTION, EXAMPLES)
    arguments.add_argument("run", metavar="RUN", help="name or MLflow id of a run")
    arguments.add_argument("--name", help="registered model (default: as the run's recipe says)")
    arguments.add_argument(
        "--checkpoint", default="best", metavar="best|last|FOLDER", help="which weights (default: best)"
    )
    arguments.add_argument(
        "--no-evaluation", dest="evaluation", action="store_false", help="do not score it on the report split"
    )
    add_workers(arguments)
    arguments.add_argument(
        "--store", metavar="URI", help="MLflow store (default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db)"
    )
    return arguments


def _say(text: str) -> None:
    print(text)  # noqa: T201


if __name__ == "__main__":
    run_command(main)

"""`python -m pipeline.promote NAME`: the challenger becomes champion if it scores better on the same report data."""

import argparse
from typing import TYPE_CHECKING

from d2ls.errors import TrackingError
from pipeline.cli import add_workers, parser, run_command, scoring_cluster

if TYPE_CHECKING:
    from pipeline.config import Recipe
    from pipeline.config.train import ClusterConfig
    from pipeline.evaluation.result import Evaluation
    from pipeline.tracking import ModelVersion, Store

DESCRIPTION = (
    "Scores the challenger and the champion on the same, current report data, and makes the challenger "
    "champion if it is better. Scores and reason go into the version's description. Never silently over a better one."
)
EXAMPLES = """\
  python -m pipeline.promote d2ls-loveda                   the version called challenger
  python -m pipeline.promote d2ls-loveda --version 7       another one
  python -m pipeline.promote d2ls-loveda --workers 4       both scored on four Ray workers
  python -m pipeline.promote d2ls-loveda --shards s3://bucket/loveda-2 --split test     on these data
  python -m pipeline.promote d2ls-loveda --version 3 --force "version 7 fails on snow"   whatever the scores
"""


def main() -> None:
    """Parses, scores, decides, says how it was decided."""
    arguments = _parser().parse_args()
    from pipeline.config.tracking import TrackingConfig
    from pipeline.tracking import CHAMPION, Store

    store = Store.open(TrackingConfig(uri=arguments.tracking_uri), create=False)
    version = _candidate(store, arguments.name, arguments.version)
    recipe = _recipe(store, version, arguments.shards, arguments.split)
    if arguments.force:
        version, reason = (
            store.promote(version.name, version.version, f"forced: {arguments.force}"),
            arguments.force,
        )
    else:
        cluster = scoring_cluster(recipe, arguments.workers, arguments.address)
        version, reason = decide(store, version, None, recipe, cluster=cluster)
    champion = CHAMPION in version.aliases
    _say(f"{version.uri}: {'champion' if champion else 'not champion'}: {reason}")


def decide(
    store: "Store",
    version: "ModelVersion",
    evaluation: "Evaluation | None",
    recipe: "Recipe",
    *,
    cluster: "ClusterConfig | None" = None,
) -> "tuple[ModelVersion, str]":
    """Makes a version champion if it beats the present one on the same report data.

    Args:
        store: where the registry is.
        version: the challenger.
        evaluation: its evaluation on the current test split; None: it is made here.
        recipe: names shards, test split and evaluation settings; both are scored with these.
        cluster: Ray workers to score on; None stays in this process.

    Returns:
        The version with its aliases afterwards, and the reason.
    """
    from pipeline.registry import versions
    from pipeline.tracking import should_promote

    champion = store.champion(version.name)
    if champion is not None and champion.version == version.version:
        return champion, "it is already the champion"
    evaluation = evaluation or _score(store, version, recipe, cluster)
    present = _score_champion(store, champion, recipe, cluster) if champion else None
    better, reason = should_promote(evaluation.scores.miou, present.scores.miou if present else None)
    where = f" ({recipe.roles.test} split, data digest {evaluation.dataset.get('digest', '')[:12]})"
    against = f", version {champion.version}" if champion else ""
    reason = f"{reason}{against}{where}"
    if better:
        return store.promote(version.name, version.version, reason), reason
    versions.note(store, version.name, version.version, f"Not promoted: {reason}")
    return versions.by_version(store, version.name, version.version), reason


def _score_champion(
    store: "Store", champion: "ModelVersion", recipe: "Recipe", cluster: "ClusterConfig | None"
) -> "Evaluation":
    try:
        return _score(store, champion, recipe, cluster)
    except TrackingError as error:  # its files were deleted
        raise TrackingError(f"{error}. Promote without scoring it: --force REASON") from error


def _score(
    store: "Store", version: "ModelVersion", recipe: "Recipe", cluster: "ClusterConfig | None"
) -> "Evaluation":
    from pipeline.evaluation.run import evaluate_recipe

    _say(f"scoring {version.uri} on {recipe.shards.uri}, split {recipe.roles.test}")
    return evaluate_recipe(recipe, version.uri, cluster=cluster, bootstrap=0, tracking_uri=store.uri)


def _candidate(store: "Store", name: str, number: str | None) -> "ModelVersion":
    from pipeline.registry import versions
    from pipeline.tracking import CHALLENGER

    if number and number not in (CHALLENGER, f"@{CHALLENGER}"):
        return versions.find(store, f"models:/{name}/{number.lstrip('v')}")
    found = versions.by_alias(store, name, CHALLENGER)
    if found is None:
        if versions.search(store, name):
            raise TrackingError(f"{name}: no version waits as {CHALLENGER}; name one: --version N")
        return versions.find(store, f"models:/{name}@{CHALLENGER}")  # says which models there are
    return found


def _recipe(store: "Store", version: "ModelVersion", shards: str | None, split: str | None) -> "Recipe":
    """Takes the recipe that lies with the version's weights; shards and split can be others."""
    from pipeline.registry import versions

    values = {**({"shards.uri": shards} if shards else {}), **({"roles.test": split} if split else {})}
    return versions.recipe_of(store, version).with_values(values)


def _parser() -> argparse.ArgumentParser:
    arguments = parser("pipeline.promote", DESCRIPTION, EXAMPLES)
    arguments.add_argument("name", metavar="NAME", help="registered model")
    arguments.add_argument(
        "--version", metavar="N", help="version to promote (default: the one called challenger)"
    )
    arguments.add_argument(
        "--shards", metavar="URI", help="data to score on (default: those of the challenger's recipe)"
    )
    arguments.add_argument(
        "--split", metavar="S", help="split to score on (default: the recipe's test split)"
    )
    add_workers(arguments)
    arguments.add_argument("--force", metavar="REASON", help="do not score, make it champion for this reason")
    arguments.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow store (default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db)",
    )
    return arguments


def _say(text: str) -> None:
    print(text)  # noqa: T201


if __name__ == "__main__":
    run_command(main)

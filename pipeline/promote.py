"""`python -m pipeline.promote NAME`: the challenger becomes champion if it scores better on the same test split."""

import argparse
from collections.abc import Sequence
from typing import Any

from pipeline.cli import add_tracking_uri, add_workers, parser, run_command, scoring_cluster

DESCRIPTION = (
    "Scores the challenger and the champion on the same, current test split, and makes the challenger "
    "champion if it is better. Scores and reason are written into the version's description. "
    "A better champion is never replaced silently."
)
EXAMPLES = """\
  python -m pipeline.promote d2ls-loveda                   # the version with the alias challenger
  python -m pipeline.promote d2ls-loveda --version 7       # another version
  python -m pipeline.promote d2ls-loveda --workers 4       # both scored on four Ray workers
  python -m pipeline.promote d2ls-loveda --shards s3://bucket/loveda-2 --split test     # on these data
  python -m pipeline.promote d2ls-loveda --version 3 --force "version 7 fails on snow"   # whatever the scores
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses, scores, decides, prints the decision and its reason."""
    given = _parser().parse_args(arguments)
    from pipeline.config.tracking import TrackingConfig
    from pipeline.evaluation.run import evaluate_recipe
    from pipeline.registry import promotion, versions
    from pipeline.tracking import Store

    store = Store.open(TrackingConfig(uri=given.tracking_uri), create=False)
    version = promotion.candidate(store, given.name, given.version)
    if given.force:
        version = versions.promote(store, version.name, version.version, f"forced: {given.force}")
        decision = promotion.Decision(version, True, given.force)
    else:
        changes = {"shards.uri": given.shards, "roles.test": given.split}
        recipe = versions.recipe_of(store, version)
        recipe = recipe.with_values({key: value for key, value in changes.items() if value})
        cluster = scoring_cluster(recipe, given.workers, given.address)

        def evaluate(model: str) -> dict[str, Any]:
            print(f"scoring {model} on {recipe.shards.uri}, split {recipe.roles.test}")  # noqa: T201
            report = evaluate_recipe(recipe, model, cluster=cluster, bootstrap=0, tracking_uri=store.uri)
            return report.to_dict()

        decision = promotion.promote_if_better(store, version, None, recipe, evaluate)
    print(f"{decision.version.uri}: {decision}")  # noqa: T201


def _parser() -> argparse.ArgumentParser:
    arguments = parser("pipeline.promote", DESCRIPTION, EXAMPLES)
    arguments.add_argument("name", metavar="NAME", help="registered model")
    arguments.add_argument(
        "--version", metavar="N", help="version to promote (default: the one with the alias challenger)"
    )
    arguments.add_argument(
        "--shards", metavar="URI", help="shards to score on (default: those of the challenger's recipe)"
    )
    arguments.add_argument(
        "--split", metavar="S", help="split to score on (default: the recipe's test split)"
    )
    add_workers(arguments)
    arguments.add_argument(
        "--force", metavar="REASON", help="do not score; make it champion, and record this reason"
    )
    add_tracking_uri(arguments)
    return arguments


if __name__ == "__main__":
    run_command(main)

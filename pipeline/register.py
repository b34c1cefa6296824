"""`python -m pipeline.register RUN`: puts the model of a run into the registry, alias `challenger`."""

import argparse
import shlex
from collections.abc import Sequence
from typing import Any

from pipeline.cli import add_workers, parser, run_command, scoring_cluster

DESCRIPTION = (
    "Registers the model of a run as a new version, with temperature, model card, signature and evaluation report, and "
    "gives it the alias `challenger`. RUN is a run folder, or the name or MLflow id of a run below --output-dir: "
    "weights, recipe and MLflow run all come from that folder. The same weights are registered once."
)
EXAMPLES = """\
  python -m pipeline.register loveda-20260301-120000-ab12           # best checkpoint, evaluated on the test split
  python -m pipeline.register runs/lo1-final --checkpoint last --name d2ls-trial
  python -m pipeline.register 3f2b8c... --no-evaluation              # by MLflow id, without scores
  python -m pipeline.register s3://bucket/runs/lo1-final --workers 4   # scored on four Ray workers
  python -m pipeline.promote d2ls-loveda                             # then: champion, if it scores better
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses, registers, prints what to do next."""
    given = _parser().parse_args(arguments)
    from pipeline.evaluation.run import evaluate_recipe
    from pipeline.training.registration import RegisterRequest, find_run, register_run

    folder = find_run(given.run, given.output_dir)
    recipe = folder.recipe()
    cluster = scoring_cluster(recipe, given.workers, given.address)

    def evaluate(checkpoint: str) -> dict[str, Any]:
        print(  # noqa: T201
            f"{checkpoint}: fitting the temperature on {recipe.roles.val}, evaluating on {recipe.roles.test}"
        )
        uri = given.tracking_uri
        report = evaluate_recipe(recipe, checkpoint, cluster=cluster, tracking_uri=uri, calibrate=True)
        return report.to_dict()

    request = RegisterRequest(given.tracking_uri, given.name, given.checkpoint)
    version = register_run(folder, request, evaluate if given.evaluation else None)
    print(  # noqa: T201
        f"{version.uri} is registered, alias challenger\n"
        f"make it champion if it is better:  python -m pipeline.promote {shlex.quote(version.name)}"
    )


def _parser() -> argparse.ArgumentParser:
    arguments = parser("pipeline.register", DESCRIPTION, EXAMPLES)
    arguments.add_argument("run", metavar="RUN", help="run folder, or name or MLflow id of a run")
    arguments.add_argument(
        "--output-dir", metavar="FOLDER", help="folder of the run folders (default: runs, as in recipes)"
    )
    arguments.add_argument("--name", help="registered model (default: the name in the run's recipe)")
    arguments.add_argument(
        "--checkpoint", default="best", metavar="best|last|FOLDER", help="which weights (default: best)"
    )
    arguments.add_argument(
        "--no-evaluation",
        dest="evaluation",
        action="store_false",
        help="do not score it on the test split, and fit no temperature on the val split",
    )
    add_workers(arguments)
    arguments.add_argument(
        "--tracking-uri", metavar="URI", help="MLflow store (default: the one that the run was logged to)"
    )
    return arguments


if __name__ == "__main__":
    run_command(main)

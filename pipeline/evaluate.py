"""`python -m pipeline.evaluate MODEL --shards URI --split S`: exact scores of trained models on a split."""

from pipeline.cli import run_command
from pipeline.console import make_console
from pipeline.evaluation.request import parse_command

DESCRIPTION = (
    "Scores trained models on a split of a shard set: every labelled pixel once, the same numbers for any number of "
    "workers. Several models are compared side by side. The report is attached to a MODEL of the registry."
)
EXAMPLES = """\
  python -m pipeline.evaluate models:/d2ls-loveda@champion --shards shards/loveda --split val
  python -m pipeline.evaluate models:/d2ls-loveda/3 models:/d2ls-loveda/4 --shards shards/loveda --split val
  python -m pipeline.evaluate runs/demo-final --recipe demo                     # shards and test split of a recipe
  python -m pipeline.evaluate runs/demo-final --recipe demo cluster.workers=4   # on four Ray workers
  python -m pipeline.evaluate runs/demo-final --recipe demo evaluate.tta=flips --output report
  python -m pipeline.evaluate runs/demo-final --recipe demo --suspects suspects.gpkg   # suspicious labels for QGIS
  python -m pipeline.evaluate runs/city --shards shards/coast --split test --map-classes classes.yaml   # other classes
"""


def main(argv: list[str] | None = None) -> int:
    """Parses, evaluates every model, prints and writes the report."""
    command = parse_command(DESCRIPTION, EXAMPLES, argv)

    from pipeline.evaluation import report, run, suspects

    if command.suspects:
        places = suspects.check_target(command.suspects, len(command.requests), overwrite=command.overwrite)
    if command.output:
        report.prepare_folder(command.output, len(command.requests), overwrite=command.overwrite)
    evaluations = [run.evaluate(request, show=True) for request in command.requests]
    console = make_console()
    report.show(console, evaluations)
    for evaluation in evaluations:
        if report.attach(evaluation, command.tracking_uri):
            console.print(f"report attached to {evaluation.model}")
    if command.output:
        shards_uri = command.requests[0].shards_uri
        report.write_report(evaluations, command.output, shards_uri, command.tracking_uri)
        console.print(f"report in {command.output}")
    if command.suspects:
        request, probability = command.requests[0], command.suspect_probability
        count = suspects.write_suspects(request, places, min_probability=probability)
        console.print(f"{count} suspected label errors in {places}, the most suspicious one first")
    return 0


if __name__ == "__main__":
    run_command(main)

"""`python -m pipeline.doctor [RECIPE ...]`: checks machine, cluster, storage, shards and tracking before you start.

Every line names what was checked and, if something is wrong, the fix.
"""

from collections.abc import Sequence

from pipeline.cli import parser, run_command

EXAMPLES = """\
  python -m pipeline.doctor                       # this machine: versions, tracking store, unfinished runs
  python -m pipeline.doctor loveda                # and whether this recipe can be trained here
  python -m pipeline.doctor loveda cluster.address=auto output_dir=s3://bucket/runs   # from every node of a cluster
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the findings; the exit status is 1 if a run would fail."""
    command = parser("pipeline.doctor", __doc__.split(": ", 1)[1].splitlines()[0].capitalize(), EXAMPLES)
    command.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help="recipe file, or the name of one in recipes/"
    )
    command.add_argument("overrides", nargs="*", metavar="key.sub=value", help="change any key of the recipe")
    options = command.parse_args(arguments)

    from pipeline.config import load_recipe
    from pipeline.diagnosis import examine

    recipe = load_recipe(options.recipe, options.overrides) if options.recipe else None
    failed = False
    for finding in examine(recipe):
        failed = failed or finding.status == "error"
        print(finding.line(), flush=True)  # noqa: T201
    return int(failed)


if __name__ == "__main__":
    run_command(main)

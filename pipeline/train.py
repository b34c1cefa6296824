"""`python -m pipeline.train RECIPE`: trains a network, here or on Ray workers, resumable by name."""

import shlex
from collections.abc import Sequence

from pipeline import cli
from pipeline.config import load_recipe
from pipeline.config.recipe import override_keys
from pipeline.training.run import TrainRequest, TrainResult, train
from pipeline.training.run_folder import RunFolder, new_name

EXAMPLES = """\
  python -m pipeline.train demo                          # a recipe that comes with the project
  python -m pipeline.train my.yaml train.epochs=10       # with a key changed
  python -m pipeline.train loveda --name first-try       # named by you
  python -m pipeline.train loveda --resume first-try     # continues from its newest checkpoint
  python -m pipeline.train loveda cluster.workers=4 cluster.address=auto   # on a running Ray cluster
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses, trains, prints what to do next."""
    parser = cli.parser(
        "pipeline.train",
        "Trains a network, in this process or on Ray workers. A run resumes by its name.",
        EXAMPLES,
    )
    cli.add_recipe(parser)
    names = parser.add_mutually_exclusive_group()
    names.add_argument("--name", help="name of the run (default: recipe, date, time)")
    names.add_argument("--resume", metavar="NAME", help="continue the run of this name")
    parser.add_argument(
        "--profile", action="store_true", help="write a trace of three steps into the run folder"
    )
    options = parser.parse_args(arguments)
    recipe = load_recipe(options.recipe, options.overrides)
    cli.warn(recipe.without_effect(override_keys(options.overrides)))
    name = options.resume or options.name or new_name(recipe)
    request = TrainRequest(recipe, name=name, resume=bool(options.resume), profile=options.profile)
    try:
        _print_next(train(request))
    except KeyboardInterrupt:
        if RunFolder.of(recipe.anchored().output_dir, name).exists():
            again = shlex.join([options.recipe, "--resume", name, *options.overrides])
            print(f"Interrupted. Go on with: python -m pipeline.train {again}")  # noqa: T201
        raise
    return 0


def _print_next(result: TrainResult) -> None:
    print(  # noqa: T201
        f"best epoch {result.best_epoch}: mIoU {result.best_scores.get('val/miou', float('nan')):.4f}\n"
        f"checkpoint  {result.best_checkpoint}\n"
        f"predict a map:  python -m pipeline.predict {shlex.quote(result.best_checkpoint)} IMAGE OUTPUT.tif"
    )


if __name__ == "__main__":
    cli.run_command(main)

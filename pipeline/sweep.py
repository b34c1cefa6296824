"""`python -m pipeline.sweep`: searches, then trains, evaluates and registers the best; by default the demo."""

from collections.abc import Sequence

from pipeline.cli import add_recipe, parser, run_command, warn

EXAMPLES = """\
  python -m pipeline.sweep                          # the demo: makes its own data, ends with a registered model
  python -m pipeline.sweep recipes/loveda.yaml      # sweep stage count and temperature as in the recipe
  python -m pipeline.sweep loveda sweep.trial_overrides.train.epochs=5 sweep.scheduler=asha
  python -m pipeline.sweep loveda 'sweep.space.train.optimizer.lr={low: 1e-5, high: 1e-3, log: true}' \\
      sweep.search=tpe sweep.num_trials=20          # search another key as well
  python -m pipeline.sweep loveda --seeds 3         # the best configuration again, with three seeds in total
  python -m pipeline.sweep loveda sweep.space.seed='{values: [0, 1, 2]}'      # every configuration with three seeds
  python -m pipeline.sweep loveda sweep=@recipes/sweeps/ablation.yaml         # the paper's ablations and a Unet
  python -m pipeline.sweep loveda --plan            # print what would be tried, and on what
  python -m pipeline.sweep --resume demo-20261122-143015-ab12
  python -m pipeline.sweep loveda --resume lo1 --seeds 3 cluster.address=ray://head:10001
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line and runs the sweep."""
    command = parser("pipeline.sweep", __doc__.split(": ", 1)[1].capitalize(), EXAMPLES)
    add_recipe(command, default="demo")
    names = command.add_mutually_exclusive_group()
    names.add_argument("--name", help="name of the sweep (default: recipe, date, time)")
    names.add_argument("--resume", metavar="NAME", help="continue an unfinished sweep")
    names.add_argument("--plan", action="store_true", help="print the plan of a new sweep and stop")
    command.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help="train the best configuration with N seeds, the first one included",
    )
    options = command.parse_args(arguments)

    from pipeline.config import load_recipe
    from pipeline.config.recipe import override_keys
    from pipeline.training.run_folder import check_name
    from pipeline.tuning.plan import show_plan
    from pipeline.tuning.space import in_vain, refuse_overridden
    from pipeline.tuning.state import is_output_dir

    if options.resume:
        check_name(options.resume, "--resume")
        # The sweep has its own recipe: this one only tells where the sweep is.
        recipe = load_recipe(options.recipe, filter(is_output_dir, options.overrides))
    else:
        recipe = load_recipe(options.recipe, options.overrides)
        refuse_overridden(recipe, options.overrides)
        warn(in_vain(recipe, override_keys(options.overrides)))
    if options.plan:
        show_plan(recipe, seeds=options.seeds)
        return

    from pipeline.tuning.run import SweepRequest, sweep

    sweep(SweepRequest(recipe, options.name, options.resume, tuple(options.overrides), options.seeds))


if __name__ == "__main__":
    run_command(main)

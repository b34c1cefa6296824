"""`python -m pipeline.shard RECIPE`: raw data to shards, one Ray task per shard."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.cli import add_recipe, parser, run_command
from pipeline.config.recipe import load_recipe

DESCRIPTION = (
    "Cuts a labelled image data set into WebDataset shards with an index and a card, ready for training. "
    "Finished shards are kept: a second call makes only what is missing."
)
EXAMPLES = """\
  python -m pipeline.shard loveda data.root=/data/LoveDA          # the folder with Train/ and Val/, or their zips
  python -m pipeline.shard loveda data.root=/data/LoveDA --check  # read everything, list all problems, write nothing
  python -m pipeline.shard loveda --verify                        # read the shards back: checksums, counts, digests
  python -m pipeline.shard loveda --preview-batches seen.png      # a picture of what the network is trained on
  python -m pipeline.shard potsdam data.root=/data/Potsdam shards.uri=s3://bucket/potsdam
  python -m pipeline.shard my_recipe.yaml data.codec.compression=zstd shards.target_mb=128
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses and runs the command."""
    command = parser("pipeline.shard", DESCRIPTION, EXAMPLES)
    add_recipe(command)
    action = command.add_mutually_exclusive_group()
    action.add_argument(
        "--check", action="store_true", help="read all raw files, list all problems, write nothing"
    )
    action.add_argument("--verify", action="store_true", help="read a finished shard set back and compare")
    action.add_argument(
        "--preview-batches",
        metavar="FILE.png",
        type=Path,
        help="draw the first augmented batches that training takes from a finished shard set, with their labels",
    )
    command.add_argument("--no-ray", action="store_true", help="one process, without Ray")
    options = command.parse_args(arguments)
    recipe = load_recipe(options.recipe, options.overrides)
    uri = recipe.shards.uri
    from pipeline.sharding import report

    if options.check:
        from pipeline.sharding.run import check_raw_data

        validation = check_raw_data(recipe, no_ray=options.no_ray)
        report.print_validation(validation, recipe.data.root)
        return 1 if validation.scan.problems else 0
    if options.verify:
        from sharding.verify import verify

        report.print_verified(verify(uri), uri)
    elif options.preview_batches:
        from pipeline.sharding.batches import draw_batches

        report.print_batches(options.preview_batches, draw_batches(recipe, options.preview_batches), recipe)
    else:
        from pipeline.console import ProgressDisplay
        from pipeline.sharding.run import ensure_shards

        with ProgressDisplay(f"sharding {recipe.name}") as display:
            card = ensure_shards(recipe, progress=report.progress_of(display), no_ray=options.no_ray)
        report.print_summary(card, uri)
    return 0


if __name__ == "__main__":
    run_command(main)

"""`python -m pipeline.import_published CHECKPOINT FOLDER RECIPE`: a checkpoint of the authors' code as a model."""

from d2ls import storage
from pipeline.cli import add_recipe, parser, run_command

DESCRIPTION = (
    "Turns a checkpoint of the published D2LS code into a model folder that every command takes. RECIPE names its "
    "shards (classes in the checkpoint's order, bands) and its ConvNeXt; the number of stages is the checkpoint's. "
    "Tensors that the network does not use are dropped and listed."
)
EXAMPLES = """\
  python -m pipeline.import_published d2ls_loveda.ckpt models/published loveda
  python -m pipeline.import_published d2ls_loveda.ckpt models/published loveda --register
  python -m pipeline.evaluate models/published --recipe loveda              # then: its scores here
"""


def main(argv: list[str] | None = None) -> None:
    """Parses, imports, prints what was dropped and where the model is."""
    arguments = parser("pipeline.import_published", DESCRIPTION, EXAMPLES)
    arguments.add_argument("checkpoint", metavar="CHECKPOINT", help="local .ckpt, .pth or .safetensors file")
    arguments.add_argument("folder", metavar="FOLDER", help="local folder to write; must not exist")
    add_recipe(arguments)
    arguments.add_argument(
        "--register", action="store_true", help="also register it, in a new run, alias challenger"
    )
    values = arguments.parse_args(argv)
    storage.check_free(values.folder, "name a folder that does not exist")

    from d2ls.shards import ShardSet
    from pipeline.config import load_recipe
    from pipeline.models.published import import_checkpoint

    recipe = load_recipe(values.recipe, values.overrides)
    card = ShardSet.open(recipe.shards.uri).card
    target = storage.local_path(values.folder)
    recipe, dropped = import_checkpoint(values.checkpoint, target, recipe, card)
    for name, count in dropped.items():
        print(f"dropped: {name} ({count})")  # noqa: T201
    print(f"{target}: a model of {card.classes.num_classes} classes, {recipe.model.stages} stages")  # noqa: T201
    if values.register:
        from pipeline.registry import register_checkpoint
        from pipeline.tracking import Store

        store = Store.open(recipe.tracking)
        run = store.start_run(recipe, card, target.name, "import")
        try:
            version = register_checkpoint(store, run, target, recipe.model_name, card=card, recipe=recipe)
        except BaseException:
            store.end_run(run, "FAILED")
            raise
        store.end_run(run)
        print(f"{version.uri} is registered, alias challenger")  # noqa: T201


if __name__ == "__main__":
    run_command(main)

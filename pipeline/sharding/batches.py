"""A picture of the training input: the first augmented batches with their labels."""

from pathlib import Path

from PIL import Image

from d2ls import storage
from d2ls.data.preview import batch_sheet
from d2ls.errors import ConfigError
from d2ls.shards import ShardSet
from d2ls.training.process_group import ProcessGroup
from pipeline.config.recipe import Recipe
from pipeline.training.build import loaders

NUM_BATCHES = 4
"""Batches in the picture."""


def draw_batches(recipe: Recipe, path: Path) -> int:
    """Draws the first batches of epoch 0 as training takes them from a finished shard set; returns their number.

    Raises:
        ConfigError: `path` is not a .png file in an existing folder.
        StorageError: the file exists.
    """
    if path.suffix.lower() != ".png" or not path.parent.is_dir():
        raise ConfigError(f"--preview-batches {path}: give the name of a .png file in a folder that exists")
    storage.check_free(path, "name another file after --preview-batches")
    in_process = recipe.model_copy(update={"loader": recipe.loader.model_copy(update={"workers": 0})})
    shards = ShardSet.open(recipe.shards.uri)
    training = loaders(in_process, shards, ProcessGroup()).training
    batches = [batch for batch, _ in zip(training.epoch(0), range(NUM_BATCHES), strict=False)]
    Image.fromarray(batch_sheet(batches, shards.card.classes)).save(path)
    return len(batches)

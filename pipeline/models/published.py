"""Imports a checkpoint of the authors' code as a model folder, described by a recipe and the card of its shards."""

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from d2ls.bundle import ModelInfo
from d2ls.errors import WeightsError
from d2ls.models import build_published
from d2ls.models.saving import save_bundle
from d2ls.models.weights import read_weights
from d2ls.scratch import atomic_write

if TYPE_CHECKING:
    from torch import Tensor

    from d2ls.shards import DatasetCard
    from pipeline.config import Recipe


def import_checkpoint(
    checkpoint: str, target: Path, recipe: "Recipe", card: "DatasetCard"
) -> tuple["Recipe", dict[str, int]]:
    """Writes the model of a published checkpoint; the folder appears complete or not at all.

    Args:
        checkpoint: local file with the state dict.
        target: folder to write; it must not exist.
        recipe: names the backbone.
        card: of the shards; classes and bands must be those of the checkpoint.

    Returns:
        The recipe with the checkpoint's number of stages; and the names of dropped tensors, numbers in them as `*`,
        with their counts.

    Raises:
        WeightsError: not a checkpoint of the authors' code, or one for other classes, bands or backbone.
    """
    weights = _read(checkpoint)
    try:
        network, dropped = build_published(weights, recipe.model.backbone)
    except WeightsError as error:
        raise WeightsError(
            f"{checkpoint}: {error}. Is model.backbone ({recipe.model.backbone}) the checkpoint's?"
        ) from error
    theirs = (network.config["num_classes"], 3, "uint8")
    ours = (card.classes.num_classes, len(card.bands), card.dtype)
    if theirs != ours:
        raise WeightsError(
            f"{checkpoint}: is for {theirs[0]} classes, 3 bands of uint8; {recipe.shards.uri} holds {ours[0]} classes "
            f"({', '.join(card.classes.names)}), {ours[1]} bands of {ours[2]}. Name the recipe of its data set"
        )
    recipe = recipe.with_values({"model.stages": network.config["stages"]})
    info = ModelInfo.from_card(
        network,
        card,
        window=recipe.loader.augmentation.crop_size,
        recipe_digest=recipe.digest(),
        imported_from=Path(checkpoint).name,
        dropped=list(dropped),
    )
    with atomic_write(target, scratch="import") as partial:
        partial.mkdir()
        save_bundle(partial, network, info)
    return recipe, dict(sorted(Counter(re.sub(r"\.\d+\.", ".*.", name) for name in dropped).items()))


def _read(checkpoint: str) -> "dict[str, Tensor]":
    try:
        return read_weights(checkpoint)
    except WeightsError as error:
        raise WeightsError(
            f"{error}. A file that holds more than tensors is first saved without the rest, where the authors' code is "
            "installed: torch.save(torch.load(FILE, weights_only=False)['state_dict'], 'weights.pth')"
        ) from error

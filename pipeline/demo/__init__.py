"""The demo runs the whole pipeline on drawn scenes, so it needs no data set."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from d2ls import storage
from pipeline.config import Recipe

if TYPE_CHECKING:
    from rich.console import Console

NAME = "demo"
SCENES = {"Train": 40, "Val": 12, "Test": 12}
SIZE = 256


def is_demo(recipe: Recipe) -> bool:
    """Returns whether a recipe is the demo, which draws its own data."""
    return recipe.name == NAME


def introduce(recipe: Recipe, console: "Console") -> None:
    """Prints what the demo will do."""
    console.print(
        f"""\
[bold]The D2LS demo[/]: from images to a registered model, on this machine (or the Ray cluster it can reach).

  1. draw {sum(SCENES.values())} aerial scenes with labels, in LoveDA's folders        {recipe.data.root}
  2. cut them into WebDataset shards with an index and a card           {recipe.shards.uri}
  3. sweep dictionary stages x contrastive temperature with Ray Tune    {recipe.output_dir}
  4. train the best configuration on {recipe.cluster.workers_text} workers with Ray Train
  5. evaluate it on scenes that selected nothing
  6. register it in MLflow, as champion if it is the first or the best

Drawn scenes are easy and the trials are short: the scores show that the pipeline works, not how good the network is.
""",
        soft_wrap=True,
    )


def make_scenes(recipe: Recipe, console: "Console") -> None:
    """Draws the scenes of the demo unless they exist; after an interrupted call it starts over."""
    from pipeline.demo.scenery import write_scenery

    root = storage.local_path(recipe.data.root)
    marker = root / "scenes.json"
    settings = {"scenes": SCENES, "size": SIZE, "seed": recipe.seed}
    if marker.is_file() and json.loads(marker.read_text()) == settings:
        return
    from pipeline.console import heading

    heading(console, f"drawing {sum(SCENES.values())} scenes")
    for part in SCENES:
        storage.delete(root / part)
    write_scenery(root, scenes=SCENES, size=SIZE, seed=recipe.seed)
    Path(marker).write_text(json.dumps(settings))

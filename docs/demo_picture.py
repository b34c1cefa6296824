"""Makes docs/pictures/demo_prediction.png: two scenes of the demo, their labels, the champion's maps.

python docs/demo_picture.py models:/d2ls-demo@champion        in the folder where the demo ran
"""

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

import pipeline
from d2ls.inference import Predictor
from d2ls.labels import IGNORE

SCENES = Path("data/demo/LoveDA/Test")
TARGET = Path(__file__).parent / "pictures" / "demo_prediction.png"
GAP = 6


def main() -> None:
    """Reads two scenes, maps them, saves the picture."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("model", help="what pipeline.load_model takes")
    arguments.add_argument("scenes", nargs="*", default=["Urban/52", "Rural/53"], help="default: %(default)s")
    options = arguments.parse_args()
    model = pipeline.load_model(options.model)
    rows = [row(model, *scene.split("/")) for scene in options.scenes]
    Image.fromarray(joined(rows, axis=0)).save(TARGET, optimize=True)


def row(model: "Predictor", area: str, number: str) -> npt.NDArray[np.uint8]:
    """Returns image, labels and map of a scene side by side."""
    image = np.asarray(Image.open(SCENES / area / "images_png" / f"{number}.png").convert("RGB"))
    raw = np.asarray(Image.open(SCENES / area / "masks_png" / f"{number}.png"))
    labels = np.where(raw == 0, IGNORE, raw - 1).astype(np.uint8)
    table = model.info.classes
    return joined([image, table.colorize(labels), table.colorize(model.predict(image))], axis=1)


def joined(parts: list[npt.NDArray[np.uint8]], axis: int) -> npt.NDArray[np.uint8]:
    """Joins pictures with a white gap."""
    shape = list(parts[0].shape)
    shape[axis] = GAP
    gap = np.full(shape, 255, np.uint8)
    return np.concatenate([piece for part in parts for piece in (part, gap)][:-1], axis=axis)


if __name__ == "__main__":
    main()

"""How much does the window change the map, and which overlap does that justify?

    python benchmarks/windows.py MODEL SCENE [--bands 1,2,3] [--windows 256 384 512 768] [--overlaps 0 0.125 0.25 0.5]

D2LS pools its whole window, lets the dictionary attend to every pixel of it, and places positions relative to it: the
same pixel in another window may get another class. Three tables are printed:

1. disagreement of maps by window size, each against the training window (same overlap);
2. disagreement between the map and one whose grid is shifted by half a stride, by overlap. This is the influence of
   the grid that remains after blending. The shift is a multiple of 32 pixels (the deepest stride) in one column, and
   13 pixels more in the other;
3. disagreement between a window's own answer and its neighbour's, by distance to the window's edge: where a window is
   least reliable. The overlap should cover the distance over which this curve falls.

Disagreement is the share of pixels (with data, 64 pixels inside the scene) whose class differs.
"""

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from d2ls.inference import Predictor
from pipeline import load_model
from pipeline.prediction.preprocessing import choose_bands
from sharding.raster.scene import open_scene

INSIDE = 64


def disagreement(one, two, valid):
    differ = (one != two) & valid
    inner = (slice(INSIDE, -INSIDE), slice(INSIDE, -INSIDE))
    return float(differ[inner].sum() / max(valid[inner].sum(), 1))


def mapped(model: Predictor, image, window, overlap):
    return Predictor(model.network, model.info, window=window, overlap=overlap, device=model.device).predict(
        image
    )


def shifted(model: Predictor, image, window, overlap, more=0):
    """The map by a grid shifted by half a stride: the scene is mirrored outwards at its upper and left edge."""
    step = max(32, round(window * (1 - overlap) / 2 / 32) * 32) + more
    padded = np.pad(image, ((step, 0), (step, 0), (0, 0)), mode="reflect")
    return mapped(model, padded, window, overlap)[step:, step:]


def by_distance(model: Predictor, image, window, bins):
    """Disagreement of a window with the one half a window further on, by distance to the nearer edge of either."""
    half, counts, wrong = window // 2, np.zeros(len(bins) - 1), np.zeros(len(bins) - 1)
    height, width = image.shape[:2]
    column = np.arange(half)
    for top in range(0, height - window + 1, half):
        for left in range(0, width - window - half + 1, half):
            pair = np.stack([image[top : top + window, left + s : left + s + window] for s in (0, half)])
            results = (
                model.tensor_logits(torch.from_numpy(np.ascontiguousarray(pair.transpose(0, 3, 1, 2))))
                .argmax(1)
                .cpu()
                .numpy()
            )
            differ = results[0][:, half:] != results[1][:, :half]
            distance = np.minimum(column, half - 1 - column)
            place = np.digitize(distance, bins) - 1
            for index in range(len(counts)):
                counts[index] += differ[:, place == index].size
                wrong[index] += differ[:, place == index].sum()
    return wrong / np.maximum(counts, 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("scene", type=Path)
    parser.add_argument("--bands")
    parser.add_argument("--windows", type=int, nargs="+", default=[256, 384, 512, 768])
    parser.add_argument("--overlaps", type=float, nargs="+", default=[0.0, 0.125, 0.25, 0.5])
    values = parser.parse_args()
    model = load_model(values.model)
    chosen = tuple(int(band) for band in values.bands.split(",")) if values.bands else None
    with open_scene(values.scene) as scene:
        bands, _ = choose_bands(scene, model.info, chosen)
        image, valid = scene.read((0, scene.height), (0, scene.width), bands)
    valid = np.ones(image.shape[:2], bool) if valid is None else valid
    trained = model.info.window
    print(
        f"model {values.model}, trained on windows of {trained}; scene {values.scene.name}, {image.shape}\n"
    )

    reference = mapped(model, image, trained, 0.25)
    print(f"| window (overlap 0.25) | disagreement with window {trained} |\n|---|---|")
    for window in values.windows:
        print(
            f"| {window} | {disagreement(reference, mapped(model, image, window, 0.25), valid):.2%} |",
            flush=True,
        )

    print(
        f"\n| overlap (window {trained}) | grid shifted by half a stride, multiple of 32 | and 13 pixels more |"
    )
    print("|---|---|---|")
    for overlap in values.overlaps:
        plain = mapped(model, image, trained, overlap)
        results = [
            disagreement(plain, shifted(model, image, trained, overlap, more), valid) for more in (0, 13)
        ]
        print(f"| {overlap} | {results[0]:.2%} | {results[1]:.2%} |", flush=True)

    if min(image.shape[0], image.shape[1] - trained // 2) >= trained:
        bins = [edge for edge in (0, 8, 16, 32, 64, 128, 256) if edge < trained // 4] + [trained // 4 + 1]
        results = by_distance(model, image, trained, bins)
        print("\n| distance to the nearer window edge, pixels | disagreement of the two windows |\n|---|---|")
        for (low, high), value in zip(itertools.pairwise(bins), results, strict=True):
            print(f"| {low} to {high} | {value:.2%} |")


if __name__ == "__main__":
    main()

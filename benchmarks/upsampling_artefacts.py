"""Do sub-pixels that start equal (`model.upsampling_init=icnr`) leave fewer artefacts of the pixel shuffles?

    python -m benchmarks.upsampling_artefacts                      # about ten minutes on two cores
    python -m benchmarks.upsampling_artefacts --epochs 24 --seeds 3

Trains the demo's recipe outside Ray, with both initialisations, the same seeds and steps, and looks at the logits of
the val scenes before, during and after training:

- lines: share of the logits' spectrum at the periods of 2 and 4 pixels, across or down (the lines at 1/4 and 1/2 cycles
  a pixel, three bins wide, under a Hann window). The two pixel shuffles repeat with these periods;
- over neighbours: the mean energy of these bins over that of bins four to six away. 1: no peak;
- isolated: share of pixels whose class none of their four neighbours has;
- mIoU on val, which selects nothing here.

Write the results into benchmarks/results/upsampling_artefacts.md with date and command.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch

INITS = ("published", "icnr")
WIDTH = 1
BESIDE = range(4, 7)


def spectrum_lines(logits):
    """Measures the energy at the periods of 2 and 4 pixels.

    Args:
        logits: K H W, float; H and W multiples of 4.

    Returns:
        Its share of the whole spectrum without the mean, and its mean over that of neighbouring bins.
    """
    values = np.asarray(logits, np.float64)
    height, width = values.shape[-2:]
    window = np.hanning(height)[:, None] * np.hanning(width)
    values = (values - values.mean((-2, -1), keepdims=True)) * window
    power = (np.abs(np.fft.fft2(values)) ** 2).sum(0)
    lines = _mask(height, width, range(-WIDTH, WIDTH + 1))
    beside = _mask(height, width, [*BESIDE, *(-step for step in BESIDE)]) & ~lines
    return float(power[lines].sum() / power.sum()), float(power[lines].mean() / power[beside].mean())


def _mask(height, width, steps):
    """Returns the bins (H W, bool) at some steps from 1/4, 1/2 and 3/4 cycles a pixel, across or down."""
    down, across = np.zeros(height, bool), np.zeros(width, bool)
    for line in (down, across):
        for quarter in (1, 2, 3):
            line[(len(line) * quarter // 4 + np.asarray(steps)) % len(line)] = True
    return down[:, None] | across


def isolated(ids):
    """Returns the share of pixels (H W class ids, without the edge) whose class none of their four neighbours has."""
    inner = ids[1:-1, 1:-1]
    around = (ids[:-2, 1:-1], ids[2:, 1:-1], ids[1:-1, :-2], ids[1:-1, 2:])
    return float(np.all([inner != other for other in around], axis=0).mean())


@torch.inference_mode()
def measure(network, batches):
    """Returns the mean over all valid images of (lines, over neighbours, isolated)."""
    measured = []
    for batch in batches:
        logits = network(batch.images[batch.valid]).logits.float().numpy()
        measured += [(*spectrum_lines(image), isolated(image.argmax(0))) for image in logits]
    return np.mean(measured, axis=0)


def train(recipe, scratch, marks):
    """Trains a recipe in this process; returns the measurements by epoch, each with the mIoU on val (NaN at 0)."""
    from d2ls.shards import ShardSet
    from d2ls.training.callbacks import Callback
    from d2ls.training.process_group import ProcessGroup
    from pipeline.training import build

    class Look(Callback):
        """Measures after the evaluations of some epochs."""

        def on_evaluation(self, report, network):
            if report.epoch in marks:
                rows[report.epoch] = (*measure(network, loaders.validation), report.scores.miou)

    shards, group = ShardSet.open(recipe.shards.uri), ProcessGroup()
    loaders = build.loaders(recipe, shards, group)
    trainer = build.trainer(recipe, shards, group, loaders, checkpoints=str(scratch), callbacks=[Look()])
    trainer.checkpointer = None
    rows = {0: (*measure(trainer.network.eval(), loaders.validation), float("nan"))}
    trainer.run()
    loaders.close()
    return rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    from rich.console import Console

    from pipeline.config import load_recipe
    from pipeline.demo import make_scenes
    from pipeline.sharding.run import ensure_shards

    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {vars(given)}", flush=True)
    torch.set_num_threads(1)
    marks = (given.epochs // 3, given.epochs)
    runs = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = [f"data.root={folder}/scenes/LoveDA", f"shards.uri={folder}/shards"]
        recipe = load_recipe("demo", places)
        make_scenes(recipe, Console(quiet=True))
        ensure_shards(recipe, no_ray=True)
        common = [*places, f"train.epochs={given.epochs}", f"train.evaluate_every={marks[0]}"]
        for seed in range(given.seeds):
            for init in INITS:
                values = [*common, f"seed={seed}", f"model.upsampling_init={init}"]
                runs[init, seed] = train(load_recipe("demo", values), folder / f"{init}-{seed}", marks)
                print(init, seed, runs[init, seed], flush=True)
    print(
        "\n| epoch | initialisation | lines | over neighbours | isolated | mIoU |\n|---|---|---|---|---|---|"
    )
    for epoch in (0, *marks):
        for init in INITS:
            values = zip(*(runs[init, seed][epoch] for seed in range(given.seeds)), strict=True)
            print(f"| {epoch} | {init} | {' | '.join(map(show, values))} |")
    print(f"\nMean and, in brackets, smallest and largest of {given.seeds} seeds.")


def show(values):
    """Formats the mean of some seeds and their range."""
    values = [float(value) for value in values]
    return f"{statistics.fmean(values):.3g} ({min(values):.3g} to {max(values):.3g})"


if __name__ == "__main__":
    main()

"""Samples beside their labels, predictions and errors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from d2ls.display import displayable
from d2ls.labels import IGNORE, ClassTable
from pipeline.figures.canvas import ERROR, INK, MISSING, Picture, legend, new_grid, render, short

CELL = 288  # longest side of a shown sample, pixels


def prediction_sheet(
    images: Sequence[npt.NDArray[Any]],
    labels: Sequence[npt.NDArray[np.integer]],
    predictions: Sequence[npt.NDArray[np.integer]],
    classes: ClassTable,
    titles: Sequence[str] | None = None,
) -> Picture:
    """Shows samples row by row: image, labels, prediction, errors (red) over the faded image.

    Args:
        images: N pictures, H W bands of any range; the first three bands are shown, 16 bits are stretched.
        labels: N label maps, H W, 0..K-1 or 255 (not labelled: dark grey).
        predictions: N label maps, H W, 0..K-1.
        classes: the K classes.
        titles: N names of samples.
    """
    columns = ("image", "labels", "prediction", "errors")
    count = len(images)
    figure, axes = new_grid(count, len(columns), width=2.3 * len(columns), height=2.36 * count + 0.75)
    for row, (image, label, predicted) in enumerate(zip(images, labels, predictions, strict=True)):
        step = max(1, -(-max(label.shape) // CELL))
        shown = displayable(image)[::step, ::step]
        truth, guess = np.asarray(label)[::step, ::step], np.asarray(predicted)[::step, ::step]
        panels = (
            shown,
            classes.colorize(truth, MISSING),
            classes.colorize(guess),
            _errors(shown, truth, guess),
        )
        for column, panel in enumerate(panels):
            cell = axes[row][column]
            cell.imshow(panel, interpolation="nearest")
            if row == 0:
                cell.set_title(columns[column], fontsize=10, color=INK, pad=5)
        known = truth != IGNORE
        share = float((truth == guess)[known].mean()) if known.any() else float("nan")
        axes[row][3].set_xlabel(f"{share:.0%} of labelled pixels right", fontsize=8, color=INK)
        if titles:
            axes[row][0].set_xlabel(short(titles[row], 30), fontsize=8, color=INK)
    legend(figure, classes, extra=[("not labelled", MISSING), ("error", ERROR)])
    return render(figure)


def _errors(shown: Picture, truth: npt.NDArray[np.integer], guess: npt.NDArray[np.integer]) -> Picture:
    grey = shown.mean(axis=-1, keepdims=True)
    faded = np.repeat(255 - (255 - grey) * 0.45, 3, axis=-1)
    faded[truth == IGNORE] = MISSING
    faded[(truth != guess) & (truth != IGNORE)] = ERROR
    return faded.astype(np.uint8)

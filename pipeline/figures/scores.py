"""Scores of an evaluation: the confusion matrix, IoU by class, and the reliability of probabilities."""

import numpy as np
import numpy.typing as npt

from d2ls.labels import ClassTable
from d2ls.metrics import BINS, PROBABILITY_BITS, Scores, expected_calibration_error
from pipeline.figures.canvas import FAINT, INK, Picture, new_figure, plain, render, shade, short


def confusion_figure(confusion: npt.NDArray[np.integer], classes: ClassTable) -> Picture:
    """Shows a confusion matrix (K K counts, rows are the truth) as shares of each true class."""
    counts = np.asarray(confusion, dtype=np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    size = classes.num_classes
    side = min(3.4 + 0.52 * size, 13.0)
    figure = new_figure(side + 2.4, side + 0.6)
    axes = figure.add_subplot()
    drawn = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    names = [short(name, 16) for name in classes.names]
    per_cent = totals[:, 0] / max(totals.sum(), 1.0)
    axes.set_xticks(range(size), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(
        range(size), [f"{name}  ({share:.0%})" for name, share in zip(names, per_cent, strict=True)]
    )
    axes.set_xlabel("predicted")
    axes.set_ylabel("true  (share of all labelled pixels)")
    for row, column in np.argwhere(shares >= 0.005):
        value = shares[row, column]
        axes.text(
            column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=8.5 if size <= 12 else 6.5,
            color="white" if value > 0.55 else INK,
        )  # fmt: skip
    bar = figure.colorbar(drawn, ax=axes, fraction=0.045, pad=0.03, format=lambda x, _: f"{x:.0%}")
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8.5, labelcolor=INK)
    plain(axes)
    axes.set_title("Where the pixels of each class went (%)", fontsize=11, color=INK, pad=10)
    return render(figure)


def class_bars(scores: Scores, classes: ClassTable) -> Picture:
    """Shows the IoU of each class as a bar in its colour, and the mean over the scored classes."""
    size = classes.num_classes
    figure = new_figure(7.4, 1.3 + 0.4 * size)
    axes = figure.add_subplot()
    values = [0.0 if np.isnan(value) else value for value in scores.iou]
    colors = [shade(color) for color in classes.palette]
    bars = axes.barh(range(size), values, color=colors, height=0.66, edgecolor=INK, linewidth=0.6)
    for place, (value, scored) in enumerate(zip(scores.iou, classes.scored, strict=True)):
        bars[place].set_alpha(1.0 if scored else 0.35)
        text = "absent" if np.isnan(value) else f"{value:.3f}"
        axes.text(
            values[place] + 0.012, place, text + ("" if scored else "  (not scored)"), va="center", fontsize=9
        )
    if not np.isnan(scores.miou):
        axes.axvline(scores.miou, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.set_yticks(range(size), [short(name, 22) for name in classes.names])
    axes.invert_yaxis()
    axes.set_xlim(0.0, 1.12)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    plain(axes)
    axes.set_title(
        f"IoU by class; mean {scores.miou:.3f} (dashed), overall accuracy {scores.overall_accuracy:.3f}",
        fontsize=11, color=INK, loc="left", pad=8,
    )  # fmt: skip
    return render(figure)


def reliability_diagram(calibration: npt.NDArray[np.integer], temperature: float | None) -> Picture:
    """Shows the accuracy against the winning probability, and the share of pixels of each bin as bars.

    Args:
        calibration: 2 BINS 3 counts, at temperature 1 and at the model's temperature.
        temperature: of the model; None: it has none.
    """
    figure = new_figure(5.6, 5.2)
    axes = figure.add_subplot()
    pixels = calibration[1, :, 0] / max(calibration[1, :, 0].sum(), 1)
    axes.bar((np.arange(BINS) + 0.5) / BINS, pixels, width=0.92 / BINS, color=FAINT, label="share of pixels")
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1.0, linestyle=(0, (4, 3)), label="perfect calibration")
    curves = {"temperature 1": (calibration[0], "#9467bd")}
    if temperature not in (None, 1.0):
        curves[f"temperature {temperature:g}"] = (calibration[1], "#1f77b4")
    for name, (counts, color) in curves.items():
        count, correct, steps = counts[counts[:, 0] > 0].T
        sure = steps / count / 2**PROBABILITY_BITS
        label = f"{name}: ECE {expected_calibration_error(counts):.3f}"
        axes.plot(sure, correct / count, "o-", color=color, markersize=4, linewidth=1.4, label=label)
    axes.set_xlim(0, 1.01)
    axes.set_ylim(0, 1.01)
    axes.set_xlabel("probability of the predicted class")
    axes.set_ylabel("accuracy")
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(loc="upper left", frameon=False, fontsize=8.5)
    plain(axes)
    axes.set_title("Reliability of the probabilities", fontsize=11, color=INK, loc="left", pad=8)
    return render(figure)

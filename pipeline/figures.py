"""Pictures of a run: pure functions from arrays to RGB pictures (H W 3, uint8). No global state of matplotlib.

Every figure is drawn on its own canvas, so threads and processes may draw at once.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch

from d2ls.labels import IGNORE, ClassTable
from d2ls.metrics import Scores

Picture = npt.NDArray[np.uint8]
DPI = 110
INK, FAINT, ERROR, MISSING = "#2b2f36", "#c9ced6", (214, 39, 40), (120, 124, 130)
CELL = 288  # longest side of a shown sample, pixels


class Scored(Protocol):
    """A trial, as `sweep_figures` sees it."""

    @property
    def values(self) -> Mapping[str, Any]:
        """Swept keys."""

    @property
    def score(self) -> float | None:
        """What ranks the trials; None before the first evaluation."""


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
    figure, axes = _grid(count, len(columns), width=2.3 * len(columns), height=2.36 * count + 0.75)
    for row, (image, label, predicted) in enumerate(zip(images, labels, predictions, strict=True)):
        step = max(1, -(-max(label.shape) // CELL))
        shown = _displayable(image)[::step, ::step]
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
            axes[row][0].set_xlabel(_short(titles[row], 30), fontsize=8, color=INK)
    _legend(figure, classes, extra=[("not labelled", MISSING), ("error", ERROR)])
    return render(figure)


def confusion_figure(confusion: npt.NDArray[np.integer], classes: ClassTable) -> Picture:
    """Shows a confusion matrix (K K counts, rows are the truth) as shares of each true class."""
    counts = np.asarray(confusion, dtype=np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    size = classes.num_classes
    side = min(3.4 + 0.52 * size, 13.0)
    figure = _figure(side + 0.9, side)
    axes = figure.add_subplot()
    drawn = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    names = [_short(name, 16) for name in classes.names]
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
    _plain(axes)
    axes.set_title("Where the pixels of each class went (%)", fontsize=11, color=INK, pad=10)
    return render(figure)


def class_bars(scores: Scores, classes: ClassTable) -> Picture:
    """Shows the IoU of each class as a bar in its colour, and the mean over the scored classes."""
    size = classes.num_classes
    figure = _figure(7.4, 1.3 + 0.4 * size)
    axes = figure.add_subplot()
    values = [0.0 if np.isnan(value) else value for value in scores.iou]
    colors = [_shade(color) for color in classes.palette]
    bars = axes.barh(range(size), values, color=colors, height=0.66, edgecolor=INK, linewidth=0.6)
    for place, (value, scored) in enumerate(zip(scores.iou, classes.scored, strict=True)):
        bars[place].set_alpha(1.0 if scored else 0.35)
        text = "absent" if np.isnan(value) else f"{value:.3f}"
        axes.text(
            values[place] + 0.012, place, text + ("" if scored else "  (not scored)"), va="center", fontsize=9
        )
    if not np.isnan(scores.miou):
        axes.axvline(scores.miou, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.set_yticks(range(size), [_short(name, 22) for name in classes.names])
    axes.invert_yaxis()
    axes.set_xlim(0.0, 1.12)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    _plain(axes)
    axes.set_title(
        f"IoU by class; mean {scores.miou:.3f} (dashed), overall accuracy {scores.overall_accuracy:.3f}",
        fontsize=11, color=INK, loc="left", pad=8,
    )  # fmt: skip
    return render(figure)


def dictionary_distances(dictionary: npt.NDArray[np.floating]) -> tuple[float, float]:
    """Mean squared distances in a dictionary over images, as the contrastive term of the paper takes them.

    Args:
        dictionary: B K C, class vectors of B images.

    Returns:
        intra: of each image's class vector to the mean of its class over the images; inter: between class means.
    """
    means = dictionary.mean(axis=0)
    intra = float(np.square(dictionary - means).sum(axis=-1).mean())
    pairs = np.square(means[:, None] - means[None]).sum(axis=-1)
    K = len(means)
    return intra, float(pairs.sum() / max(K * (K - 1), 1))


def dictionary_map(
    dictionaries: Sequence[npt.NDArray[np.floating]],
    static: npt.NDArray[np.floating] | None,
    classes: ClassTable,
) -> Picture:
    """Shows class vectors by stage on their two principal axes, with intra- and inter-class distance.

    Args:
        dictionaries: one a stage (D0, after each stage, after the closing attention), each B K C.
        static: the learned static vectors, K C, or None; drawn as diamonds beside D0.
        classes: the K classes.
    """
    count = len(dictionaries)
    columns = count if count <= 5 else 4
    rows = -(-count // columns)
    figure, axes = _grid(rows, columns, width=max(2.6 * columns, 5.0), height=2.8 * rows + 0.85)
    for place, dictionary in enumerate(dictionaries):
        cell = axes[place // columns][place % columns]
        fixed = static if place == 0 else None
        _scatter(cell, np.asarray(dictionary, dtype=np.float64), fixed, classes)
        intra, inter = dictionary_distances(np.asarray(dictionary, dtype=np.float64))
        name = "D0, mixed for each image" if place == 0 else f"D{place}"
        name = f"D{place}, closing attention" if place == count - 1 and place > 0 else name
        cell.set_title(name, fontsize=9.5, color=INK, pad=4)
        cell.set_xlabel(f"intra {intra:.3g}   inter {inter:.3g}", fontsize=8.5, color=INK)
    for place in range(count, rows * columns):
        axes[place // columns][place % columns].set_visible(False)
    marks = "dot: one image   ring: mean of the class" + (
        "   diamond: static vector" if static is not None else ""
    )
    figure.suptitle(f"Class vectors by stage (two principal axes of each).  {marks}", fontsize=9, color=INK)
    _legend(figure, classes, extra=[])
    return render(figure)


def sweep_figures(trials: Sequence[Scored], keys: Sequence[str], metric: str) -> dict[str, Picture]:
    """Draws the metric against each swept key, and all trials in order.

    Args:
        trials: those without a score are left out.
        keys: swept keys.
        metric: name of the score, for the axis.

    Returns:
        Pictures by name: the key itself, and `trials`; empty where no trial has a score.
    """
    scored = [trial for trial in trials if trial.score is not None]
    if not scored:
        return {}
    pictures = {
        key: _against(scored, key, keys, metric) for key in keys if any(key in t.values for t in scored)
    }
    return {**pictures, "trials": _ranking(scored, metric)}


def render(figure: Figure) -> Picture:
    """Draws a figure into an RGB picture."""
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _against(scored: Sequence[Scored], key: str, keys: Sequence[str], metric: str) -> Picture:
    """One point a trial, a line through the means; colour is the other swept key where there is one."""
    having = [trial for trial in scored if key in trial.values]
    levels = sorted({trial.values[key] for trial in having}, key=lambda v: (isinstance(v, str), v))
    numeric = all(isinstance(level, int | float) and not isinstance(level, bool) for level in levels)
    even = not numeric or len(levels) <= 6
    place = {level: float(number) if even else float(level) for number, level in enumerate(levels)}
    figure = _figure(6.4, 4.0)
    axes = figure.add_subplot()
    other = next((name for name in keys if name != key and any(name in t.values for t in having)), None)
    groups = sorted({str(trial.values.get(other, "-")) for trial in having}) if other else [""]
    colors = mpl.colormaps["viridis"](np.linspace(0.05, 0.85, len(groups)))
    for group, color in zip(groups, colors, strict=True):
        members = [trial for trial in having if not other or str(trial.values.get(other, "-")) == group]
        points = sorted((place[trial.values[key]], trial.score or 0.0) for trial in members)
        axes.plot(
            *zip(*points, strict=True), "o-", color=color, markersize=7, linewidth=1, alpha=0.9, label=group
        )
    means = [np.mean([t.score or 0.0 for t in having if t.values[key] == level]) for level in levels]
    axes.plot([place[level] for level in levels], means, color=INK, linewidth=2.2, alpha=0.35, label="mean")
    if even:
        axes.set_xticks(list(place.values()), [str(level) for level in levels])
        axes.set_xlim(-0.5, len(levels) - 0.5)
    elif min(levels) > 0 and max(levels) / min(levels) > 20:
        axes.set_xscale("log")
    axes.set_xlabel(key)
    axes.set_ylabel(metric)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    _plain(axes)
    legend = axes.legend(
        title=other, fontsize=8, title_fontsize=8, frameon=False, bbox_to_anchor=(1.01, 1), loc="upper left"
    )
    legend.set_in_layout(True)
    return render(figure)


def _ranking(scored: Sequence[Scored], metric: str) -> Picture:
    ranked = sorted(scored, key=lambda trial: -(trial.score or 0.0))[:40]
    figure = _figure(7.6, 1.1 + 0.3 * len(ranked))
    axes = figure.add_subplot()
    values = [trial.score or 0.0 for trial in ranked]
    names = [
        ", ".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in t.values.items()) for t in ranked
    ]
    colors = ["#3b6fb6", *["#a9bfdc"] * (len(ranked) - 1)]
    axes.barh(range(len(ranked)), values, color=colors, height=0.7)
    for place, value in enumerate(values):
        axes.text(value, place, f" {value:.4f}", va="center", fontsize=8)
    axes.set_yticks(range(len(ranked)), [_short(name, 44) for name in names])
    axes.invert_yaxis()
    axes.set_xlim(0, max(max(values) * 1.15, 1e-6))
    axes.set_xlabel(metric)
    _plain(axes)
    return render(figure)


def _scatter(
    axes: Axes,
    dictionary: npt.NDArray[np.float64],
    static: npt.NDArray[np.floating] | None,
    classes: ClassTable,
) -> None:
    B, K, C = dictionary.shape
    center = dictionary.reshape(-1, C).mean(axis=0)
    basis = np.linalg.svd(dictionary.reshape(-1, C) - center, full_matrices=False)[2][:2]
    basis = basis * np.where(basis.sum(axis=1, keepdims=True) < 0, -1.0, 1.0)  # SVD leaves the signs open
    flat = (dictionary - center) @ basis.T
    if flat.shape[-1] < 2:
        flat = np.concatenate([flat, np.zeros((B, K, 1))], axis=-1)
    for number, color in enumerate(classes.palette):
        shade = _shade(color)
        x, y = flat[:, number].T
        axes.scatter(x, y, s=20, color=[shade], edgecolors=INK, linewidths=0.4, alpha=0.9)
        axes.scatter(x.mean(), y.mean(), s=110, facecolors="none", edgecolors=[shade], linewidths=1.8)
    if static is not None and len(basis) == 2:
        x, y = basis @ (np.asarray(static, dtype=np.float64) - center).T
        shades = [_shade(color) for color in classes.palette]
        axes.scatter(x, y, s=42, marker="D", c=shades, edgecolors=INK, linewidths=0.6, alpha=0.55)
    axes.margins(0.16)


def _errors(shown: Picture, truth: npt.NDArray[np.integer], guess: npt.NDArray[np.integer]) -> Picture:
    grey = shown.mean(axis=-1, keepdims=True)
    faded = np.repeat(255 - (255 - grey) * 0.45, 3, axis=-1)
    faded[truth == IGNORE] = MISSING
    faded[(truth != guess) & (truth != IGNORE)] = ERROR
    return faded.astype(np.uint8)


def _displayable(image: npt.NDArray[Any]) -> Picture:
    """Takes one or three bands; stretches what is not 8 bit between its 1st and 99th percentile."""
    bands = image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=-1)
    if bands.dtype == np.uint8:
        return bands
    low, high = np.percentile(bands, (1, 99))
    scaled = (bands.astype(np.float64) - low) / max(high - low, 1e-9)
    return (scaled.clip(0, 1) * 255).astype(np.uint8)


def _figure(width: float, height: float) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.07)
    return Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")


def _grid(rows: int, columns: int, *, width: float, height: float) -> tuple[Figure, npt.NDArray[Any]]:
    figure = _figure(width, height)
    axes = figure.subplots(rows, columns, squeeze=False)
    for cell in axes.flat:
        cell.set_xticks([])
        cell.set_yticks([])
        for spine in cell.spines.values():
            spine.set_color(FAINT)
    return figure, axes


def _plain(axes: Axes) -> None:
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    axes.xaxis.label.set(color=INK, fontsize=9.5)
    axes.yaxis.label.set(color=INK, fontsize=9.5)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _legend(figure: Figure, classes: ClassTable, extra: list[tuple[str, tuple[int, int, int]]]) -> None:
    entries = [*zip(classes.names, classes.palette, strict=True), *extra]
    patches = [
        Patch(facecolor=_shade(color), edgecolor=INK, linewidth=0.4, label=_short(name, 20))
        for name, color in entries
    ]
    width = figure.get_figwidth()
    figure.legend(
        handles=patches, loc="outside lower center", ncols=max(1, int(width / 1.45)), frameon=False, fontsize=8.5,
        handlelength=1.2, handleheight=1.2,
    )  # fmt: skip


def _shade(color: tuple[int, int, int]) -> tuple[float, float, float]:
    red, green, blue = color
    return red / 255, green / 255, blue / 255


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"

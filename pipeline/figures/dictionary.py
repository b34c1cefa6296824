"""The dictionary by stage: class vectors on their principal axes, and the distances of the paper."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from d2ls.labels import ClassTable
from pipeline.figures.canvas import INK, Picture, legend, new_grid, render, shade


def dictionary_distances(dictionary: npt.NDArray[np.floating]) -> tuple[float, float]:
    """Computes mean squared distances in a dictionary over images, as in the contrastive term of the paper.

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
        dictionaries: one per stage (D0, after each stage, after the closing attention), each B K C.
        static: the learned static vectors, K C, or None; drawn as diamonds beside D0.
        classes: the K classes.
    """
    count = len(dictionaries)
    columns = count if count <= 5 else 4
    rows = -(-count // columns)
    figure, axes = new_grid(rows, columns, width=max(2.6 * columns, 5.0), height=2.8 * rows + 0.85)
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
    legend(figure, classes, extra=[])
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
        tint = shade(color)
        x, y = flat[:, number].T
        axes.scatter(x, y, s=20, color=[tint], edgecolors=INK, linewidths=0.4, alpha=0.9)
        axes.scatter(x.mean(), y.mean(), s=110, facecolors="none", edgecolors=[tint], linewidths=1.8)
    if static is not None and len(basis) == 2:
        x, y = basis @ (np.asarray(static, dtype=np.float64) - center).T
        shades = [shade(color) for color in classes.palette]
        axes.scatter(x, y, s=42, marker="D", c=shades, edgecolors=INK, linewidths=0.6, alpha=0.55)
    axes.margins(0.16)

"""Building blocks of all figures: colours, axes, legend, and rendering to an array."""

from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch

from d2ls.labels import ClassTable

Picture = npt.NDArray[np.uint8]
DPI = 110
INK, FAINT, ERROR, MISSING = "#2b2f36", "#c9ced6", (214, 39, 40), (120, 124, 130)


def render(figure: Figure) -> Picture:
    """Renders a figure to an RGB picture (H W 3, uint8)."""
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure; width and height in inches."""
    layout = ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.07)
    return Figure(figsize=(width, height), dpi=DPI, layout=layout, facecolor="white")


def new_grid(rows: int, columns: int, *, width: float, height: float) -> tuple[Figure, npt.NDArray[Any]]:
    """Returns a figure of rows x columns panels without ticks, and its axes."""
    figure = new_figure(width, height)
    axes = figure.subplots(rows, columns, squeeze=False)
    for cell in axes.flat:
        cell.set_xticks([])
        cell.set_yticks([])
        for spine in cell.spines.values():
            spine.set_color(FAINT)
    return figure, axes


def plain(axes: Axes) -> None:
    """Removes the frame and the tick marks."""
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    axes.xaxis.label.set(color=INK, fontsize=9.5)
    axes.yaxis.label.set(color=INK, fontsize=9.5)
    for spine in axes.spines.values():
        spine.set_visible(False)


def legend(figure: Figure, classes: ClassTable, extra: list[tuple[str, tuple[int, int, int]]]) -> None:
    """Adds a legend of the classes, and of further names with colours, below the figure."""
    entries = [*zip(classes.names, classes.palette, strict=True), *extra]
    patches = [
        Patch(facecolor=shade(color), edgecolor=INK, linewidth=0.4, label=short(name, 20))
        for name, color in entries
    ]
    width = figure.get_figwidth()
    figure.legend(
        handles=patches, loc="outside lower center", ncols=max(1, int(width / 1.45)), frameon=False, fontsize=8.5,
        handlelength=1.2, handleheight=1.2,
    )  # fmt: skip


def shade(color: tuple[int, int, int]) -> tuple[float, float, float]:
    """Converts a colour from 0..255 to 0..1."""
    red, green, blue = color
    return red / 255, green / 255, blue / 255


def short(text: str, length: int) -> str:
    """Shortens a text to a length."""
    return text if len(text) <= length else f"{text[: length - 1]}…"

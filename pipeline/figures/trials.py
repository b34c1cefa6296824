"""Figures of a sweep: the score against each swept key, and all trials in order."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import matplotlib as mpl
import numpy as np

from pipeline.figures.canvas import FAINT, INK, Picture, new_figure, plain, render, short


class Scored(Protocol):
    """The attributes of a trial that `sweep_figures` needs."""

    @property
    def values(self) -> Mapping[str, Any]:
        """Swept keys."""

    @property
    def score(self) -> float | None:
        """Score that ranks the trials; None before the first evaluation."""


def sweep_figures(trials: Sequence[Scored], keys: Sequence[str], metric: str) -> dict[str, Picture]:
    """Draws the metric against each swept key, and all trials in order.

    Args:
        trials: those without a score are left out.
        keys: swept keys.
        metric: name of the score, for the axis.

    Returns:
        Pictures by name: the key itself, and `trials`; empty if no trial has a score.
    """
    scored = [trial for trial in trials if trial.score is not None]
    if not scored:
        return {}
    pictures = {
        key: _against(scored, key, keys, metric) for key in keys if any(key in t.values for t in scored)
    }
    return {**pictures, "trials": _ranking(scored, metric)}


def _against(scored: Sequence[Scored], key: str, keys: Sequence[str], metric: str) -> Picture:
    """Draws one point per trial and a line through the means; colour shows the other swept key if there is one."""
    having = [trial for trial in scored if key in trial.values]
    levels = sorted({trial.values[key] for trial in having}, key=lambda v: (isinstance(v, str), v))
    numeric = all(isinstance(level, int | float) and not isinstance(level, bool) for level in levels)
    even = not numeric or len(levels) <= 6
    place = {level: float(number) if even else float(level) for number, level in enumerate(levels)}
    figure = new_figure(6.4, 4.0)
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
    plain(axes)
    drawn = axes.legend(
        title=other, fontsize=8, title_fontsize=8, frameon=False, bbox_to_anchor=(1.01, 1), loc="upper left"
    )
    drawn.set_in_layout(True)
    return render(figure)


def _ranking(scored: Sequence[Scored], metric: str) -> Picture:
    ranked = sorted(scored, key=lambda trial: -(trial.score or 0.0))[:40]
    figure = new_figure(7.6, 1.1 + 0.3 * len(ranked))
    axes = figure.add_subplot()
    values = [trial.score or 0.0 for trial in ranked]
    names = [
        ", ".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in t.values.items()) for t in ranked
    ]
    colors = ["#3b6fb6", *["#a9bfdc"] * (len(ranked) - 1)]
    axes.barh(range(len(ranked)), values, color=colors, height=0.7)
    for place, value in enumerate(values):
        axes.text(value, place, f" {value:.4f}", va="center", fontsize=8)
    axes.set_yticks(range(len(ranked)), [short(name, 44) for name in names])
    axes.invert_yaxis()
    axes.set_xlim(0, max(max(values) * 1.15, 1e-6))
    axes.set_xlabel(metric)
    plain(axes)
    return render(figure)

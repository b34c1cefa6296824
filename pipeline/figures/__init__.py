"""Figures of a run: pure functions from arrays to RGB pictures (H W 3, uint8). No global state of matplotlib.

Every figure has its own canvas, so several threads may draw at once.
"""

from pipeline.figures.canvas import ERROR, MISSING, Picture
from pipeline.figures.dictionary import dictionary_distances, dictionary_map
from pipeline.figures.predictions import prediction_sheet
from pipeline.figures.scores import class_bars, confusion_figure, reliability_diagram
from pipeline.figures.trials import sweep_figures

__all__ = [
    "ERROR",
    "MISSING",
    "Picture",
    "class_bars",
    "confusion_figure",
    "dictionary_distances",
    "dictionary_map",
    "prediction_sheet",
    "reliability_diagram",
    "sweep_figures",
]

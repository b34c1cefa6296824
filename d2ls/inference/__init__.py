"""From a trained network to label maps of any size: windows, test-time augmentation, `Predictor`. Arrays in and out.

predictor = Predictor(*load_bundle(folder))
labels = predictor.predict(image)            # H W bands uint8 -> H W uint8
"""

from d2ls.inference.predictor import Predictor
from d2ls.inference.sliding_window import (
    Band,
    Grid,
    Progress,
    Source,
    blend,
    overlap_pixels,
    span_count,
    stitch,
)
from d2ls.inference.tta import PRESETS, TTATransform, average_predictions, cost, tta_transforms

__all__ = [
    "PRESETS",
    "Band",
    "Grid",
    "Predictor",
    "Progress",
    "Source",
    "TTATransform",
    "average_predictions",
    "blend",
    "cost",
    "overlap_pixels",
    "span_count",
    "stitch",
    "tta_transforms",
]

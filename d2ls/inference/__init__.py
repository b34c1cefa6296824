"""From a trained network to label maps of any size: windows, test-time augmentation, `Segmenter`. Arrays in and out.

segmenter = Segmenter(*load_bundle(folder))
labels = segmenter.predict(image)            # H W bands uint8 -> H W uint8
"""

from d2ls.inference.augment import PRESETS, View, average_views, cost, views
from d2ls.inference.segmenter import Segmenter
from d2ls.inference.stitch import Band, Progress, Source, stitch
from d2ls.inference.windows import Grid, blend, overlap_pixels, span_count

__all__ = [
    "PRESETS",
    "Band",
    "Grid",
    "Progress",
    "Segmenter",
    "Source",
    "View",
    "average_views",
    "blend",
    "cost",
    "overlap_pixels",
    "span_count",
    "stitch",
    "views",
]

"""The D2LS network, its parts, and baselines; `build_model` makes one from plain values."""

from d2ls.models.baselines import BASELINES, Baseline
from d2ls.models.build import build_model
from d2ls.models.d2ls import D2LS, D2LSOutput
from d2ls.models.normalization import Normalization, backbone_normalization
from d2ls.models.published import build_published, load_published

__all__ = [
    "BASELINES",
    "D2LS",
    "Baseline",
    "D2LSOutput",
    "Normalization",
    "backbone_normalization",
    "build_model",
    "build_published",
    "load_published",
]

"""The D2LS network, its parts, and baselines; `build_model` makes one from plain values."""

from d2ls.model.baseline import BASELINES, Baseline
from d2ls.model.build import build_model
from d2ls.model.network import D2LS
from d2ls.model.normalization import Normalization, backbone_normalization
from d2ls.model.output import D2LSOutput
from d2ls.model.published import build_published, load_published

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

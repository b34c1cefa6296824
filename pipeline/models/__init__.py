"""Trained models: loaded by name, run on Ray workers, used as initial weights, imported from the authors' code."""

from pipeline.models.loading import (
    BUNDLE_FILES,
    NO_TEMPERATURE,
    REGISTRY_SCHEMES,
    fetch_model,
    files_digest,
    load_model,
    load_predictor,
    read_files,
    registered_report,
    unpacked,
)

__all__ = [
    "BUNDLE_FILES",
    "NO_TEMPERATURE",
    "REGISTRY_SCHEMES",
    "fetch_model",
    "files_digest",
    "load_model",
    "load_predictor",
    "read_files",
    "registered_report",
    "unpacked",
]

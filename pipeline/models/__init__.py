"""Trained models: loaded by name, used as initial weights, imported from the authors' code."""

from pipeline.models.loading import (
    BUNDLE_FILES,
    fetch_model,
    files_digest,
    load_model,
    load_predictor,
    read_files,
    unpacked,
)

__all__ = [
    "BUNDLE_FILES",
    "fetch_model",
    "files_digest",
    "load_model",
    "load_predictor",
    "read_files",
    "unpacked",
]

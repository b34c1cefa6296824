"""Registered models in MLflow: the files of a version, and how a challenger becomes champion.

version = register_checkpoint(store, run_id, checkpoint, "d2ls-demo", card=card, recipe=recipe)     # challenger
folder = versions.download(store, "models:/d2ls-demo@challenger")
versions.promote(store, "d2ls-demo", version.version, "because")                                    # champion
"""

from pipeline.registry.logged_model import register_checkpoint
from pipeline.registry.versions import CHALLENGER, CHAMPION, ModelVersion

__all__ = ["CHALLENGER", "CHAMPION", "ModelVersion", "register_checkpoint"]

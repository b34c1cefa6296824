"""The commands: shard, sweep, train, evaluate, predict, register, promote, doctor. See the README."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.models import load_model

__all__ = ["load_model"]


def __getattr__(name: str) -> Any:
    """Loads `load_model` on first use, so that `--help` stays quick."""
    if name == "load_model":
        from pipeline.models import load_model

        return load_model
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")

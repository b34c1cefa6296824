"""The exceptions of the project: one root, and a class for each kind of error that a user can fix.

Every message names the offending file, key, shard or value, what is allowed, and how to fix it.
"""

import difflib
from collections.abc import Iterable


class D2LSError(Exception):
    """Root of all errors that a user can fix. The commands print its message without a traceback."""


class ConfigError(D2LSError, ValueError):
    """A value of a recipe, an override or an argument is unknown, of the wrong type or impossible."""


class DataError(D2LSError):
    """An input file is missing, unreadable or not as its data set describes."""


class LabelError(DataError):
    """A label image has a colour or an id that the data set does not define."""


class ShardError(DataError):
    """A shard set is incomplete, damaged or of another schema version."""


class StorageError(D2LSError):
    """A storage location cannot be reached, read or written."""


class WeightsError(D2LSError):
    """A weight file does not fit the network."""


class CheckpointError(D2LSError):
    """A checkpoint is incomplete, damaged or of another run."""


class TrainingError(D2LSError):
    """Training cannot continue."""


class NonFiniteLossError(TrainingError):
    """A loss term is not finite; raised on every rank before the optimizer step."""


class NonFiniteOutputError(D2LSError):
    """The output of a network is not finite, so it has no class and no probability."""


class TrackingError(D2LSError):
    """The MLflow store or registry refuses a request."""


class ResourceError(D2LSError):
    """The machine or cluster does not have what the recipe asks for."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Returns the allowed words that are most similar to a wrong one, as a question; all of them if none is similar."""
    allowed = list(allowed)
    close = difflib.get_close_matches(word, allowed, n=3, cutoff=0.6)
    return f"Did you mean {' or '.join(close)}?" if close else f"Allowed: {', '.join(allowed)}"

"""The exceptions of the project: one root, and a class for each kind of error that a user can fix.

Every message names the offending file, key, shard or value, what is allowed, and the way out.
"""


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

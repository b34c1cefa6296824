"""The exception tree of the project: one root, one branch for each thing a person has to mend.

Every message names the offending file, key, shard or value, what would be allowed, and the way out.
"""


class D2LSError(Exception):
    """Root of all errors that a user can mend. The commands print its message without a traceback."""


class ConfigError(D2LSError, ValueError):
    """A value of a recipe, of an override or of an argument is unknown, of the wrong type or impossible."""


class DataError(D2LSError):
    """An input file is missing, unreadable or not what its data set promises."""


class LabelError(DataError):
    """A label image holds a colour or an id that the data set does not define."""


class ShardError(DataError):
    """A shard set is incomplete, damaged or of another schema version."""


class StorageError(D2LSError):
    """A storage location cannot be reached, read or written."""


class WeightsError(D2LSError):
    """A weight file does not fit the network."""


class CheckpointError(D2LSError):
    """A checkpoint is incomplete, damaged or of another run."""


class TrainingError(D2LSError):
    """Training cannot go on."""


class NonFiniteLossError(TrainingError):
    """A loss term is not finite; raised on every rank before the optimizer step."""


class TrackingError(D2LSError):
    """The MLflow store or registry refuses a request."""


class ResourceError(D2LSError):
    """The machine or cluster cannot give what the recipe asks for."""

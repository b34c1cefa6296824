"""Recipe sections `tracking` and `registry`."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import Section


class TrackingConfig(Section):
    """Logging of runs."""

    uri: str | None = None
    """MLflow store; unset: MLFLOW_TRACKING_URI, else `sqlite:///mlflow.db` in the working folder."""
    experiment: str | None = None
    """Name of the MLflow experiment; unset: the recipe's name."""
    figures_every: Annotated[int, Field(ge=1)] = 1
    """Epochs between figures (predictions, confusion matrix, class bars, dictionary map)."""
    figure_samples: Annotated[int, Field(ge=1, le=16)] = 4
    """Samples in each figure of predictions."""
    system_metrics: bool = True
    """Log CPU, memory, disk, network and GPU of the first worker's machine."""


class RegistryConfig(Section):
    """The model registry."""

    name: str | None = None
    """Registered model; unset: `d2ls-` and the recipe's name."""
    promote: Literal["if_better", "never"] = "never"
    """After a sweep: `if_better` makes the new version `champion` if there is none yet or it scores better on the test
    split."""

"""Recipe section `evaluate`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from d2ls.errors import ConfigError
from pipeline.config.base import Section

TestTimeAugmentation = Literal["none", "flips", "flips_turns", "flips_scales"]


class EvaluateConfig(Section):
    """Exact evaluation of a split."""

    batch_size: Annotated[int, Field(ge=1)] = 4
    """Samples in a forward pass."""
    tta: TestTimeAugmentation = "none"
    """Test-time augmentation; the probabilities of all views are averaged."""
    bootstrap: Annotated[int, Field(ge=0)] = 1000
    """Bootstrap resamplings of scenes for the confidence intervals; 0 turns them off."""
    boundary_px: Annotated[int, Field(ge=1, le=255)] | None = None
    """Distance in pixels for boundary IoU and boundary F1; unset: they are not computed."""
    boundary_m: Annotated[float, Field(gt=0)] | None = None
    """In place of `boundary_px`: the distance in metres, rounded to whole pixels of the shards."""

    @model_validator(mode="after")
    def _one_distance(self) -> Self:
        if self.boundary_px is not None and self.boundary_m is not None:
            raise ValueError(
                "give boundary_px or boundary_m; null takes one back, e.g. evaluate.boundary_m=null"
            )
        return self


def boundary_pixels(
    pixels: int | None, metres: float | None, resolution: float | None, *, where: str
) -> int | None:
    """Returns the distance of the boundary scores in whole pixels; None: they are not asked for.

    Args:
        pixels: `evaluate.boundary_px`.
        metres: `evaluate.boundary_m`, in its place.
        resolution: metres a pixel; None: unknown.
        where: the shards, for messages.

    Raises:
        ConfigError: metres, where the resolution is unknown or less than half a pixel is asked for.
    """
    if metres is None:
        return pixels
    if resolution is None:
        raise ConfigError(
            f"evaluate.boundary_m={metres:g}: the resolution of {where} is unknown. Give the distance in pixels "
            "(evaluate.boundary_px), or set data.ground_sampling_distance and shard the data again"
        )
    rounded = round(metres / resolution)
    if rounded < 1:
        raise ConfigError(
            f"evaluate.boundary_m={metres:g} is less than half a pixel of {where}, which is {resolution:g} m"
        )
    return rounded

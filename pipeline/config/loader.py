"""Recipe section `loader`: batches and augmentation."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.base import Section

Probability = Annotated[float, Field(ge=0, le=1)]


class AugmentationConfig(Section):
    """Random changes to training samples; evaluation has none."""

    crop_size: Annotated[int, Field(ge=32)] = 512
    """Side of the square training crop, in pixels; also the default window of prediction."""
    scale: tuple[float, float] | None = (0.75, 1.5)
    """Random zoom, lowest and highest factor; null turns it off."""
    max_class_fraction: Annotated[float, Field(gt=0, lt=1)] | None = 0.75
    """Draw another crop (up to ten times) while one class fills more than this share of it; null turns it off."""
    horizontal_flip: Probability = 0.5
    """Probability of a flip left to right."""
    vertical_flip: Probability = 0.5
    """Probability of a flip top to bottom."""
    quarter_turns: Probability = 0.5
    """Probability of a turn by a random multiple of 90 degrees."""
    brightness_contrast: Probability = 0.0
    """Probability of a change of brightness and contrast, each by up to a quarter."""
    sharpen: Probability = 0.0
    """Probability of sharpening."""
    mosaic: Probability = 0.25
    """Probability of a mosaic: a sample put together from four."""

    @model_validator(mode="after")
    def _scale_is_a_range(self) -> Self:
        if self.scale and not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError("scale needs 0 < lowest <= highest")
        return self


class LoaderConfig(Section):
    """The loader of a worker."""

    augmentation: AugmentationConfig = AugmentationConfig()
    workers: Annotated[int, Field(ge=0, le=64)] = 2
    """Decoding processes per worker; 0 decodes in the training process. The batches are the same for any number."""
    shuffle_window: Annotated[int, Field(ge=1)] = 256
    """Number of samples among which a lane (a position in the global batch) shuffles; a larger window mixes better and
    keeps more shards open."""
    class_weighting: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Repeats samples of rare classes: 0 not at all, 1 by inverse frequency."""
    bad_samples: Literal["raise", "skip"] = "raise"
    """A damaged sample: stop with its name, or replace it by an empty image without labels."""
    skip_limit: Annotated[int, Field(ge=0)] = 10
    """With `bad_samples: skip`: largest number of samples that a worker may skip, each counted once."""
    cache_dir: str | None = None
    """Local folder for shards of an object store; unset: one below the system's temporary folder."""
    cache_gb: Annotated[float, Field(gt=0)] = 50.0
    """Largest size of that folder in GB, for all processes of a machine."""

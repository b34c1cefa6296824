"""Recipe section `evaluate`; prediction takes its settings from the model and from the command line."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import Section

TestTimeAugmentation = Literal["none", "flips", "flips_turns", "flips_scales"]


class EvaluateConfig(Section):
    """Exact evaluation of a split."""

    batch_size: Annotated[int, Field(ge=1)] = 4
    """Samples in a forward pass."""
    tta: TestTimeAugmentation = "none"
    """Test-time augmentation; the probabilities of all views are averaged."""
    bootstrap: Annotated[int, Field(ge=0)] = 1000
    """Resamplings over scenes for the intervals; 0 turns them off."""

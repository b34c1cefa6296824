"""The temperature of a model, fitted on a split; see `d2ls.inference.calibration`."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from d2ls.inference.calibration import TEMPERATURES, best_temperature, likelihood_slopes
from d2ls.labels import IGNORE
from pipeline.evaluation.parts import OnProgress, SplitPart, open_split
from pipeline.evaluation.request import EvaluateRequest

if TYPE_CHECKING:
    from d2ls.inference import Predictor


def fit_temperature(request: EvaluateRequest, *, show: bool = False) -> float | None:
    """Fits the temperature of a model in one pass over a split, without test-time augmentation.

    Args:
        request: model and split; the split must not be the one on which scores are reported.
        show: show the progress on the error stream.

    Returns:
        The temperature, to four digits; None if the split has no labelled pixel.

    Raises:
        ConfigError: the model was trained for other classes than those of the shards.
        DataError: the model takes other bands or pixel types.
        ShardError: no such shards or split.
    """
    with open_split(request) as split:
        title = f"fitting the temperature of {request.model} on {request.split}"
        return best_temperature(split.work(sum_slopes, title, show=show))


def sum_slopes(
    model: "Predictor", part: SplitPart, on_progress: OnProgress | None = None
) -> npt.NDArray[np.float64]:
    """Adds up the slopes of the likelihood over a part of a split."""
    total = np.zeros(len(TEMPERATURES))
    with part.batches(on_progress) as batches:
        for batch in batches:
            labels = batch.labels.masked_fill(~batch.valid.view(-1, 1, 1), IGNORE).to(model.device)
            total += likelihood_slopes(model.tensor_logits(batch.images), labels)
    return total

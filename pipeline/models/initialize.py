"""Initial weights from another trained model (`model.init`), which may have other classes or bands."""

import logging
from collections.abc import Sequence

from torch import Tensor, nn

from d2ls.bundle import ModelInfo, read_info
from d2ls.errors import WeightsError
from d2ls.models.backbone import fit_bands, rgb_places
from d2ls.models.saving import load_bundle
from pipeline.models.loading import fetch_model

_log = logging.getLogger(__name__)


def load_initial(
    network: nn.Module, uri: str, bands: Sequence[str], *, tracking_uri: str | None = None
) -> None:
    """Copies the weights of a trained model where they fit.

    Parts that depend on the number of classes keep their random weights if that number differs. The first convolution
    of a three-band model is fitted to other bands (`d2ls.models.backbone.fit_bands`). The log names both.

    Args:
        network: takes the weights; has `.config`.
        uri: `models:/name@alias`, a run folder, or a checkpoint folder.
        bands: names of the bands that the network takes.
        tracking_uri: MLflow store of `models:/`; None: the local one.

    Raises:
        WeightsError: no model there, or one with another backbone.
    """
    with fetch_model(uri, tracking_uri=tracking_uri) as folder:
        source, info = load_bundle(folder)
    _check_backbone(uri, info, str(network.config["backbone"]))  # type: ignore[index]
    fitting, missing = _fitting(network.state_dict(), source.state_dict(), rgb_places(bands))
    network.load_state_dict(fitting, strict=False)
    _log.info("started from %s: %d of %d tensors", uri, len(fitting), len(fitting) + len(missing))
    if missing:
        _log.info("not taken over, as classes, bands or stages differ: %s", ", ".join(missing))


def check_initial(uri: str, backbone: str, *, tracking_uri: str | None = None) -> None:
    """Checks that the model is there and has the backbone of the recipe.

    Raises:
        WeightsError: no model there, or one with another backbone.
        TrackingError: the registry does not know it or cannot be reached.
    """
    with fetch_model(uri, tracking_uri=tracking_uri) as folder:
        _check_backbone(uri, read_info(folder, where=uri), backbone)


def _check_backbone(uri: str, info: ModelInfo, ours: str) -> None:
    theirs = info.config["backbone"]
    if theirs.split(".")[0] != ours.split(".")[0]:
        raise WeightsError(
            f"model.init: {uri} has the backbone {theirs}, the recipe has {ours}; they must be equal"
        )


def _fitting(
    ours: dict[str, Tensor], theirs: dict[str, Tensor], rgb: Sequence[int]
) -> tuple[dict[str, Tensor], list[str]]:
    """Returns the tensors that fit, and the names of those that do not."""
    fitting, missing = {}, []
    for name, tensor in ours.items():
        other = theirs.get(name)
        if other is not None and other.shape == tensor.shape:
            fitting[name] = other
        elif other is not None and name.startswith("backbone.") and other.dim() == 4 and other.shape[1] == 3:
            fitting[name] = fit_bands(other, tensor.shape[1], rgb)
        else:
            missing.append(name)
    return fitting, missing

"""Trained models by name: from the registry, from a run, from a checkpoint or bundle folder on any storage.

`load_model("models:/d2ls-loveda@champion").predict(image)` takes H W bands and returns H W class ids; neither Ray nor
a server is needed.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from d2ls import storage
from d2ls.bundle import INFO_FILE, WEIGHTS_FILE, ModelInfo, load_bundle
from d2ls.errors import WeightsError

if TYPE_CHECKING:
    from d2ls.inference import Segmenter

BEST_FILES = ("checkpoints/best.json", "best.json")
"""Below a run folder, or in its folder of checkpoints: names the best checkpoint, which lies beside it."""

REGISTRY_SCHEMES = ("models:/", "runs:/")
FORMS = (
    "models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID/PATH, a run folder, a checkpoint folder, or a folder with "
    f"{INFO_FILE} and {WEIGHTS_FILE}"
)


def load_model(
    uri: str,
    *,
    device: str | None = None,
    augmentation: str = "none",
    batch_size: int = 4,
    window: int | None = None,
    overlap: float | None = None,
    tracking_uri: str | None = None,
) -> "Segmenter":
    """Loads a trained model.

    Args:
        uri: `models:/name@alias`, `models:/name/version`, `runs:/id/path`, or a folder on any storage: of a run (its
            best checkpoint is taken), of a checkpoint, or of a bundle.
        device: where to compute; None takes a CUDA device where there is one.
        augmentation: preset of test-time augmentation.
        batch_size: windows looked at together.
        window: side of the windows; None takes the training window.
        overlap: overlap of windows as a share of their side; None takes the default.
        tracking_uri: MLflow store of `models:/` and `runs:/`; None takes MLFLOW_TRACKING_URI, else the local one.

    Raises:
        WeightsError: no model there, or a damaged one.
        TrackingError: the registry does not know it or cannot be reached.
    """
    from d2ls.inference import Segmenter
    from d2ls.inference.segmenter import OVERLAP

    with fetch_model(uri, tracking_uri=tracking_uri) as folder:
        network, info = load_bundle(folder)
    return Segmenter(
        network, info, device=device, augmentation=augmentation, batch_size=batch_size, window=window,
        overlap=OVERLAP if overlap is None else overlap,
    )  # fmt: skip


@contextlib.contextmanager
def fetch_model(uri: str, *, tracking_uri: str | None = None) -> Iterator[Path]:
    """Yields a local folder with the model's two files; a download is deleted afterwards."""
    if uri.startswith(REGISTRY_SCHEMES):
        from pipeline.config.tracking import TrackingConfig
        from pipeline.tracking import Store

        store = Store.open(TrackingConfig(uri=tracking_uri), create=False)
        with tempfile.TemporaryDirectory(prefix="d2ls-model-") as folder:
            yield _bundle_below(Path(store.download(uri, Path(folder))), uri)
        return
    found = _find(uri)
    if storage.is_local(found):
        yield storage.local_path(found)
        return
    with tempfile.TemporaryDirectory(prefix="d2ls-model-") as folder:
        for name in (INFO_FILE, WEIGHTS_FILE):
            Path(folder, name).write_bytes(storage.read_bytes(storage.join(found, name)))
        yield Path(folder)


def model_files(uri: str, *, tracking_uri: str | None = None) -> dict[str, bytes]:
    """Reads the model's files, for sending it to workers that may reach neither folder nor registry."""
    with fetch_model(uri, tracking_uri=tracking_uri) as folder:
        return {name: (folder / name).read_bytes() for name in (INFO_FILE, WEIGHTS_FILE)}


def model_info(files: dict[str, bytes], *, where: str) -> ModelInfo:
    """Returns the description among a model's files."""
    return ModelInfo.from_json(files[INFO_FILE].decode(), where=where)


@contextlib.contextmanager
def unpacked(files: dict[str, bytes]) -> Iterator[str]:
    """Yields a folder that holds a model's files for as long as it is open."""
    with tempfile.TemporaryDirectory(prefix="d2ls-model-") as folder:
        for name, content in files.items():
            Path(folder, name).write_bytes(content)
        yield folder


def _find(uri: str) -> str:
    """Follows a run folder to its best checkpoint; returns the location that holds the model's files."""
    if _is_bundle(uri):
        return uri
    for best in (storage.join(uri, name) for name in BEST_FILES):
        if storage.exists(best):
            target = _best_checkpoint(best)
            if _is_bundle(target):
                return target
            raise WeightsError(f"{best} names {target}, which holds no {INFO_FILE} and {WEIGHTS_FILE}")
    if not storage.exists(uri):
        raise WeightsError(f"{uri}: no such folder. A model is named by {FORMS}")
    raise WeightsError(f"{uri}: no model in this folder. A model is named by {FORMS}")


def _best_checkpoint(best: str) -> str:
    try:
        return storage.join(best.rsplit("/", 1)[0], str(json.loads(storage.read_bytes(best))["checkpoint"]))
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{best}: does not name a checkpoint ({error!r})") from error


def _is_bundle(uri: str) -> bool:
    return all(storage.exists(storage.join(uri, name)) for name in (INFO_FILE, WEIGHTS_FILE))


def _bundle_below(folder: Path, uri: str) -> Path:
    """Finds the model's files in what the registry gave."""
    found = sorted(file.parent for file in folder.rglob(INFO_FILE) if (file.parent / WEIGHTS_FILE).is_file())
    if not found:
        raise WeightsError(
            f"{uri}: the registry gave {folder}, which holds no {INFO_FILE} and {WEIGHTS_FILE}"
        )
    return found[0]

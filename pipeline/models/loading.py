"""Loads trained models by name: from the registry, a run, or a checkpoint or bundle folder on any storage.

`load_model("models:/d2ls-loveda@champion").predict(image)` takes H W bands and returns H W class ids; neither Ray nor
a server is needed.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2ls import storage
from d2ls.bundle import INFO_FILE, WEIGHTS_FILE
from d2ls.errors import WeightsError
from d2ls.scratch import scratch_folder

if TYPE_CHECKING:
    from d2ls.inference import Predictor

BEST_FILES = ("checkpoints/best.json", "best.json")
"""Paths of the file that names the best checkpoint: from a run folder, and from its folder of checkpoints."""

BUNDLE_FILES = (INFO_FILE, WEIGHTS_FILE)
REGISTRY_SCHEMES = ("models:/", "runs:/")
NO_TEMPERATURE = (
    "no temperature, its probabilities are those of the softmax (`python -m pipeline.register` fits one)"
)
FORMS = (
    "models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID/PATH, a run folder, a checkpoint folder, or a folder with "
    f"{INFO_FILE} and {WEIGHTS_FILE}"
)


def load_model(
    uri: str,
    *,
    device: str | None = None,
    tta: str = "none",
    batch_size: int = 4,
    window: int | None = None,
    overlap: float | None = None,
    tracking_uri: str | None = None,
) -> "Predictor":
    """Loads a trained model.

    Args:
        uri: `models:/name@alias`, `models:/name/version`, `runs:/id/path`, or a folder on any storage: of a run (its
            best checkpoint is taken), of a checkpoint, or of a bundle.
        device: where to compute; None takes a CUDA device if there is one.
        tta: preset of test-time augmentation.
        batch_size: windows per forward pass.
        window: side of the windows; None takes the training window.
        overlap: overlap of windows as a share of their side; None takes the default.
        tracking_uri: MLflow store of `models:/` and `runs:/`; None takes MLFLOW_TRACKING_URI, else the local one.

    Raises:
        WeightsError: no model there, or a damaged one.
        TrackingError: the registry does not know it or cannot be reached.
    """
    with fetch_model(uri, tracking_uri=tracking_uri) as folder:
        return load_predictor(
            folder, where=uri, device=device, tta=tta, batch_size=batch_size, window=window,
            overlap=overlap,
        )  # fmt: skip


def load_predictor(folder: Path, *, where: str, overlap: float | None = None, **settings: Any) -> "Predictor":
    """Loads a model from a local folder with its two files.

    Args:
        folder: see `fetch_model`.
        where: name of the model, for messages.
        overlap: overlap of windows as a share of their side; None takes the default.
        **settings: further arguments of `d2ls.inference.Predictor`.

    Raises:
        WeightsError: damaged.
    """
    from d2ls.inference import Predictor
    from d2ls.inference.predictor import OVERLAP
    from d2ls.models.saving import load_bundle

    network, info = load_bundle(folder, where=where)
    return Predictor(network, info, overlap=OVERLAP if overlap is None else overlap, **settings)


@contextlib.contextmanager
def fetch_model(uri: str, *, tracking_uri: str | None = None) -> Iterator[Path]:
    """Yields a local folder with the model's two files; a download is deleted afterwards.

    Raises:
        WeightsError: no model there.
        TrackingError: the registry does not know it or cannot be reached.
    """
    if uri.startswith(REGISTRY_SCHEMES):
        from pipeline.config.tracking import TrackingConfig
        from pipeline.registry import versions
        from pipeline.tracking import Store

        store = Store.open(TrackingConfig(uri=tracking_uri), create=False)
        with scratch_folder("model") as folder:
            yield _bundle_below(Path(versions.download(store, uri, folder)), uri)
        return
    location = _find(uri)
    if storage.is_local(location):
        yield storage.local_path(location)
        return
    with scratch_folder("model") as folder:
        for name in BUNDLE_FILES:
            storage.download(storage.join(location, name), folder / name)
        yield folder


def registered_report(uri: str, *, tracking_uri: str | None = None) -> str | None:
    """Returns the evaluation report that was registered with `models:/` or `runs:/`, as JSON; None: there was none.

    Raises:
        TrackingError: the registry does not know the model or cannot be reached.
    """
    from pipeline.config.tracking import TrackingConfig
    from pipeline.registry import versions
    from pipeline.tracking import Store

    return versions.report_of(Store.open(TrackingConfig(uri=tracking_uri), create=False), uri)


def read_files(folder: Path) -> dict[str, bytes]:
    """Reads a model's files, to send them to workers that may not have access to folder or registry."""
    return {name: (folder / name).read_bytes() for name in BUNDLE_FILES}


@contextlib.contextmanager
def unpacked(files: dict[str, bytes]) -> Iterator[Path]:
    """Yields a temporary folder with a model's files."""
    with scratch_folder("model") as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        yield folder


def files_digest(folder: Path) -> str:
    """Returns the SHA-256 digest of a model's files, as hex digits."""
    digest = hashlib.sha256()
    for name in sorted(BUNDLE_FILES):
        with (folder / name).open("rb") as stream:
            digest.update(name.encode() + b"\0" + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _find(uri: str) -> str:
    """Returns the folder that holds the model's files: for a run folder its best checkpoint."""
    if uri.lower().startswith(("models:", "runs:")):
        raise WeightsError(f"{uri}: not a name of a model. A model is named by {FORMS}")
    if _is_bundle(uri):
        return uri
    for best in (storage.join(uri, name) for name in BEST_FILES):
        if storage.exists(best):
            target = _best_checkpoint(best)
            if _is_bundle(target):
                return target
            raise WeightsError(
                f"{best} names {target}, which holds no {INFO_FILE} and {WEIGHTS_FILE}; name another checkpoint folder"
            )
    if not storage.exists(uri):
        raise WeightsError(f"{uri}: no such folder. A model is named by {FORMS}")
    raise WeightsError(f"{uri}: no model in this folder. A model is named by {FORMS}")


def _best_checkpoint(best: str) -> str:
    try:
        return storage.join(best.rsplit("/", 1)[0], str(json.loads(storage.read_bytes(best))["checkpoint"]))
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{best}: does not name a checkpoint ({error!r}); name a checkpoint folder yourself"
        ) from error


def _is_bundle(uri: str) -> bool:
    return all(storage.exists(storage.join(uri, name)) for name in (INFO_FILE, WEIGHTS_FILE))


def _bundle_below(folder: Path, uri: str) -> Path:
    """Returns the folder of the model's files inside a registered model."""
    folders = sorted(
        file.parent for file in folder.rglob(INFO_FILE) if (file.parent / WEIGHTS_FILE).is_file()
    )
    if not folders:
        raise WeightsError(
            f"{uri}: the registered model has no {INFO_FILE} and {WEIGHTS_FILE}; register it again with "
            "`python -m pipeline.register RUN`"
        )
    return folders[0]

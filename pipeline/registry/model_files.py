"""The folder of a registered model: script, code, bundle, requirements, signature and example."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2ls import storage
from d2ls.bundle import INFO_FILE, WEIGHTS_FILE, ModelInfo
from d2ls.errors import WeightsError
from d2ls.scratch import scratch_folder
from pipeline.registry import model_code
from pipeline.tracking import connection

SCRIPT = Path(__file__).with_name("served_model.py")


def fetch_bundle(source: Path | str, folder: Path) -> Path:
    """Copies weights and description of a checkpoint (folder or URI) into a new local folder; returns it."""
    folder.mkdir(parents=True)
    for name in (INFO_FILE, WEIGHTS_FILE):
        uri = storage.join(source, name)
        if not storage.exists(uri):
            raise WeightsError(
                f"{source}: no {name}; a model is a folder with {INFO_FILE} and {WEIGHTS_FILE}"
            )
        storage.download(uri, folder / name)
    return folder


def bundle_digest(bundle: Path) -> str:
    """Returns the SHA-256 (hex) of weights and description."""
    digest = hashlib.sha256()
    for name in (INFO_FILE, WEIGHTS_FILE):
        with (bundle / name).open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def signature(info: ModelInfo) -> Any:
    """Returns the signature, with free batch size, height and width. An inferred signature would fix them."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ParamSchema, ParamSpec, Schema, TensorSpec

    images = TensorSpec(np.dtype(info.dtype), (-1, -1, -1, len(info.bands)))
    labels = TensorSpec(np.dtype("uint8"), (-1, -1, -1))
    params = ParamSchema([ParamSpec("probabilities", "boolean", False), ParamSpec("image", "string", "")])
    return ModelSignature(inputs=Schema([images]), outputs=Schema([labels]), params=params)


def save_model(
    folder: Path, bundle: Path, info: ModelInfo, extra: Mapping[str, Path], **identity: Any
) -> None:
    """Writes a complete MLflow model folder: script, code, bundle, requirements, signature, example.

    Args:
        folder: created; must not exist.
        bundle: weights and description.
        info: the description, read.
        extra: further files by name, kept as artifacts.
        **identity: fields of MLflow's `Model` (model_id, run_id, artifact_path).
    """
    import mlflow.pyfunc
    import numpy as np
    from mlflow.models import Model

    with scratch_folder("register") as scratch:
        package = model_code.write_package(scratch / "code")
        artifacts = {"bundle": bundle, "code": scratch / "code", **extra}
        example = np.random.default_rng(0).integers(0, 255, (1, 32, 32, len(info.bands))).astype(info.dtype)
        with connection.quiet():
            mlflow.pyfunc.save_model(
                path=str(folder),
                python_model=str(SCRIPT),
                artifacts={name: str(path) for name, path in artifacts.items()},
                signature=signature(info),
                input_example=example,
                pip_requirements=model_code.requirements(info),
                metadata={
                    "package": package,
                    "classes": list(info.classes.names),
                    "palette": info.classes.to_json(),
                },
                mlflow_model=Model(**identity),
            )

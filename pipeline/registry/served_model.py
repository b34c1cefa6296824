"""The registered model as MLflow runs it: a script beside the weights, without pickle or imports of this project.

MLflow executes this file by path. The network's code is stored with the model, as a package with its digest in the
name. So versions with different code can be loaded in one process, and none imports a checkout or an installed
release. The model's signature describes what `predict` takes and returns.
"""

import base64
import importlib
import importlib.util
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


def _package(folder: str) -> str:
    """Imports the one package in a folder under its own name, without touching the search path."""
    (source,) = (path for path in Path(folder).iterdir() if (path / "__init__.py").is_file())
    if source.name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            source.name, source / "__init__.py", submodule_search_locations=[str(source)]
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[source.name] = module
        spec.loader.exec_module(module)
    return source.name


def _decode(text: str) -> "np.ndarray[Any, Any]":
    """Decodes a base64 picture (PNG, JPEG, WebP, TIFF) to H W bands."""
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(text.partition("base64,")[2] or text))) as picture:
        pixels = np.asarray(picture.convert("RGB") if picture.mode in ("P", "CMYK", "1") else picture)
    return pixels[..., None] if pixels.ndim == 2 else pixels


class ServedModel(PythonModel):
    """Label maps from raw images.

    Attributes:
        network: the PyTorch network, in evaluation mode.
        info: classes, palette, bands, normalisation, data set (`ModelInfo`).
        predictor: maps images of any size, window by window.
    """

    def load_context(self, context: Any) -> None:
        """Rebuilds the network from the bundle, with the bundled code."""
        name = _package(context.artifacts["code"])
        saving = importlib.import_module(f"{name}.models.saving")
        inference = importlib.import_module(f"{name}.inference")
        self.network, self.info = saving.load_bundle(Path(context.artifacts["bundle"]))
        self.predictor = inference.Predictor(self.network, self.info)

    def predict(
        self,
        context: Any,
        model_input: np.ndarray,  # MLflow passes only the file name
        params: dict[str, Any] | None = None,
    ) -> Any:
        """Maps images.

        Args:
            context: not used.
            model_input: B H W bands, uint8 or uint16 as in the signature, raw pixels.
            params: `probabilities` (return them instead of labels), `image` (one base64 picture, used instead of
                `model_input`).

        Returns:
            Class ids, B H W uint8; with `probabilities` B K H W float32.
        """
        params = params or {}
        images = _decode(params["image"])[None] if params.get("image") else np.asarray(model_input)
        bands = len(self.info.bands)
        if params.get("image") and images.shape[-1] == bands + 1 and bands in (1, 3):
            images = images[..., :bands]  # the alpha channel of a picture
        images = images.astype(self.info.dtype, copy=False) if images.dtype.kind == "u" else images
        if params.get("probabilities"):
            return self.predictor.probabilities(images)
        return self.predictor.predict(images)


set_model(ServedModel())

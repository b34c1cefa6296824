"""`mlflow models serve` answers arrays and base64 pictures over HTTP, without network or pickle."""

import base64
import io
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from d2ls.inference import Predictor
from d2ls.models.saving import load_bundle
from tests.mlflow_processes import free_port, mlflow
from tests.tracked_runs import register_blobs

pytestmark = pytest.mark.slow

IMAGE = np.random.default_rng(4).integers(0, 255, (40, 56, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Predictor]]:
    folder = tmp_path_factory.mktemp("serving")
    world = register_blobs(folder)
    port = free_port()
    with mlflow(
        "models", "serve", "-m", "models:/d2ls-blobs@challenger", "--env-manager", "local", "-h", "127.0.0.1",
        "-p", str(port), "-w", "1", log=folder / "serve.log", health=f"http://127.0.0.1:{port}/ping",
        environment={"MLFLOW_TRACKING_URI": world.store.uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
                     "OMP_NUM_THREADS": "1"},
    ):  # fmt: skip
        yield f"http://127.0.0.1:{port}/invocations", Predictor(*load_bundle(world.checkpoint))


def ask(url: str, content: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())["predictions"]


def test_arrays(served: tuple[str, Predictor]) -> None:
    url, predictor = served
    labels = np.array(ask(url, {"inputs": IMAGE[None].tolist()}), dtype=np.uint8)
    assert np.array_equal(labels[0], predictor.predict(IMAGE))


def test_base64_picture(served: tuple[str, Predictor], tmp_path: Path) -> None:
    url, predictor = served
    stream = io.BytesIO()
    Image.fromarray(IMAGE).save(stream, format="PNG")
    text = base64.b64encode(stream.getvalue()).decode()
    placeholder = [[[[0, 0, 0]]]]
    labels = ask(url, {"inputs": placeholder, "params": {"image": text}})
    assert np.array_equal(np.array(labels[0], np.uint8), predictor.predict(IMAGE))
    shares = np.array(ask(url, {"inputs": placeholder, "params": {"image": text, "probabilities": True}}))
    assert shares.shape == (1, 4, 40, 56)
    assert np.allclose(shares.sum(axis=1), 1.0, atol=1e-5)


def test_a_wrong_shape_is_refused(served: tuple[str, Predictor]) -> None:
    with pytest.raises(urllib.error.HTTPError, match="400"):
        ask(served[0], {"inputs": IMAGE[None, ..., :2].tolist()})

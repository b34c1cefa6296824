"""`dev.py served`: a registered model in a fresh environment, made from the model's own list of requirements.

Registers a network, makes a fresh virtual environment, and installs only the `requirements.txt` that MLflow stores with
the model. There it maps an image with MLflow, without access to this project.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np

from d2ls.inference import Predictor
from d2ls.models.saving import load_bundle
from pipeline.tracking import Store
from tests.tracked_runs import register_blobs

SCRIPT = """\
import importlib.util, json, mlflow, numpy as np
assert importlib.util.find_spec("d2ls") is None and importlib.util.find_spec("pipeline") is None
model = mlflow.pyfunc.load_model("models:/d2ls-blobs@challenger")
print(json.dumps(model.predict(np.load("image.npy")).tolist()))
"""


def main() -> int:
    """Runs it for one architecture and prints the installed packages."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--architecture", default="d2ls", help="d2ls, unet, ... (default: d2ls)")
    architecture = arguments.parse_args().architecture
    with tempfile.TemporaryDirectory(prefix="d2ls-served-") as scratch:
        folder = Path(scratch)
        made = register_blobs(
            folder, **{"model.architecture": architecture, "model.backbone": "test_convnext"}
        )
        store, checkpoint = made.store, made.checkpoint
        needs = requirements(store, folder)
        print(f"requirements of the model: {', '.join(needs.read_text().split())}", flush=True)
        python = make_environment(folder / "environment", needs)
        image = np.random.default_rng(1).integers(0, 255, (2, 80, 50, 3)).astype(np.uint8)
        np.save(folder / "image.npy", image)
        # -P and an empty PYTHONPATH: neither this folder nor the checkout is searched.
        done = subprocess.run(
            [str(python), "-P", "-c", SCRIPT], cwd=folder, check=False, text=True, stdout=subprocess.PIPE,
            env={"PATH": os.environ["PATH"], "HOME": str(folder), "MLFLOW_TRACKING_URI": store.uri,
                 "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
        )  # fmt: skip
        if done.returncode:
            return done.returncode
        result = np.array(json.loads(done.stdout.splitlines()[-1]), np.uint8)
        expected = Predictor(*load_bundle(checkpoint)).predict(image)
        share = float((result == expected).mean())
        print(f"{architecture}: {share:.4%} of {result.size} pixels as in this environment")
        return 0 if share > 0.999 else 1


def requirements(store: Store, folder: Path) -> Path:
    """Fetches the requirements file of the model."""
    from mlflow.artifacts import download_artifacts

    os.environ["MLFLOW_TRACKING_URI"] = store.uri
    uri = "models:/d2ls-blobs@challenger/requirements.txt"
    return Path(download_artifacts(uri, dst_path=str(folder), tracking_uri=store.uri))


def make_environment(folder: Path, needs: Path) -> Path:
    """Makes a virtual environment with these requirements; returns its Python."""
    venv.create(folder, with_pip=True, symlinks=os.name != "nt")
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    install = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-r",
        str(needs),
    ]
    subprocess.run(install, check=True)
    return python


if __name__ == "__main__":
    sys.exit(main())

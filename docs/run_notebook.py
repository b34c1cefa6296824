"""Runs examples/own_images.ipynb, some minutes on two cores, and keeps what it shows: `python docs/run_notebook.py`."""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "examples" / "own_images.ipynb"


def run(folder):
    """Returns the notebook as it ran in a folder; raises where a cell fails."""
    notebook = nbformat.read(NOTEBOOK, 4)
    commands = Path(sys.executable).parent  # where `d2ls` is
    client = NotebookClient(
        notebook, timeout=1800, coalesce_streams=True, record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )  # fmt: skip
    client.execute(env={**os.environ, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"})
    return notebook


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        nbformat.write(run(scratch), NOTEBOOK)

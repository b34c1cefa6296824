"""The tests here run on a GPU with `-m gpu`, and on the CPU, with small networks, in the default tests.

They need PyTorch 2.11 or later, timm and the other imports of `d2ls`, but no Ray, MLflow or raster library.
"""

import os

import pytest
import torch

from tests.tiny_trainer import tiny_shards

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # sums in a fixed order; read when CUDA starts


@pytest.fixture(autouse=True)
def _gpu(request):
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Returns the device of the test."""
    return torch.device(request.param, 0 if request.param == "cuda" else None)


@pytest.fixture
def repeatable():
    """Makes the numbers of every run equal, as far as the device can."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return tiny_shards(tmp_path_factory.mktemp("shards"))

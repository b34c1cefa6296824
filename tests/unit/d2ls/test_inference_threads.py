"""The batch is divided among threads on a CPU, and nothing else changes."""

import threading

import pytest
import torch

from d2ls.inference.threads import SlicedForward
from d2ls.models import build_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_model(backbone="test_resnet", num_classes=4, stages=1).eval()


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_slices_give_the_logits_of_the_whole_batch(network, samples):
    images = torch.randint(0, 256, (samples, 3, 64, 96), dtype=torch.uint8)
    with torch.inference_mode():
        expected = network(images).logits
    torch.testing.assert_close(SlicedForward(CPU, threads=3)(network, images), expected, rtol=1e-4, atol=1e-5)


def test_each_slice_has_a_thread_of_its_own_with_one_processor_and_both_modes(network):
    seen, together = [], threading.Barrier(2, timeout=20)

    def spy(images):
        together.wait()
        seen.append((threading.current_thread(), torch.get_num_threads(), torch.is_inference_mode_enabled(),
                     torch.is_autocast_enabled("cpu")))  # fmt: skip
        return network(images)

    before = torch.get_num_threads()
    forward = SlicedForward(CPU, autocast=torch.bfloat16, threads=2)
    forward(spy, torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert [values for _, *values in seen] == [[1, True, True]] * 2
    assert len({thread for thread, *_ in seen}) == 2
    assert torch.get_num_threads() == before


def test_an_error_in_a_slice_is_the_callers(network):
    def broken(images):
        raise ValueError("no such layer")

    with pytest.raises(ValueError, match="no such layer"):
        SlicedForward(CPU, threads=2)(broken, torch.zeros(2, 3, 32, 32))

"""How much arithmetic a training step is, and what share of a GPU's peak a run reaches.

Model FLOPs: a multiply-add counts as two, the backward pass as twice the forward pass, and what is computed a second
time to save memory does not count. So the share falls where work is repeated, and no trick can raise it.
"""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from d2ls.training.step import Precision

TERAFLOPS: dict[str, dict[Precision, float]] = {
    "H200": {"bf16": 989.0, "tf32": 494.0, "fp32": 67.0},
    "H100 PCIe": {"bf16": 756.0, "tf32": 378.0, "fp32": 51.0},
    "H100": {"bf16": 989.0, "tf32": 494.0, "fp32": 67.0},
    "A100": {"bf16": 312.0, "tf32": 156.0, "fp32": 19.5},
    "A10G": {"bf16": 70.0, "tf32": 35.0, "fp32": 35.0},
    "A10": {"bf16": 125.0, "tf32": 62.5, "fp32": 31.2},
    "L40S": {"bf16": 362.0, "tf32": 183.0, "fp32": 91.6},
    "L4": {"bf16": 121.0, "tf32": 60.0, "fp32": 30.3},
}
"""Peak of dense arithmetic by words in the device's name, from NVIDIA's data sheets; the first that fits counts."""


def training_flops(network: nn.Module, shape: tuple[int, int, int]) -> float:
    """Counts the model FLOPs of one image in training, by one forward pass that leaves no trace.

    Args:
        network: not compiled yet; takes normalised B C H W images.
        shape: C H W of the training crop.
    """
    images = torch.zeros(1, *shape, device=next(network.parameters()).device)
    training = network.training
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network.eval()(images, True)
    finally:
        network.train(training)
    return 3.0 * counter.get_total_flops()


def peak_teraflops(device: torch.device, precision: Precision) -> float | None:
    """Returns the peak of a GPU in 1e12 FLOP/s; None where it is not in the table, and for CPUs."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peaks[precision] for words, peaks in TERAFLOPS.items() if words in name), None)

"""FLOPs of a training step, and their share of a GPU's peak (model FLOPs utilisation, MFU).

A multiply-add counts as two FLOPs, the backward pass as twice the forward pass (nothing for a frozen backbone).
Recomputation to save memory does not count, so it lowers the MFU.
"""

import re
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from d2ls.training.device import Precision

PEAK_TFLOPS: dict[str, dict[Precision, float]] = {
    "H200": {"bf16": 989.0, "tf32": 494.0, "fp32": 67.0},
    "H100 NVL": {"bf16": 835.0, "tf32": 417.0, "fp32": 60.0},
    "H100 PCIe": {"bf16": 756.0, "tf32": 378.0, "fp32": 51.0},
    "H100": {"bf16": 989.0, "tf32": 494.0, "fp32": 67.0},
    "A100": {"bf16": 312.0, "tf32": 156.0, "fp32": 19.5},
    "A10G": {"bf16": 70.0, "tf32": 35.0, "fp32": 35.0},
    "A10": {"bf16": 125.0, "tf32": 62.5, "fp32": 31.2},
    "L40S": {"bf16": 362.0, "tf32": 183.0, "fp32": 91.6},
    "L40": {"bf16": 181.0, "tf32": 90.5, "fp32": 90.5},
    "L4": {"bf16": 121.0, "tf32": 60.0, "fp32": 30.3},
}
"""Peak of dense arithmetic in 1e12 FLOP/s by words in a device's name; the first entry that matches counts.

Source: NVIDIA's data sheets.
"""


@dataclass(frozen=True)
class FlopMeter:
    """Turns the duration of a step into rates.

    Attributes:
        flops: model FLOPs of a step on one device; 0 where the size of the crops is not known.
        peak_tflops: peak of the device in 1e12 FLOP/s; None where it is not known.
    """

    flops: float = 0.0
    peak_tflops: float | None = None

    @classmethod
    def of(
        cls,
        network: nn.Module,
        shape: tuple[int, int, int] | None,
        images: float,
        device: str,
        precision: Precision,
    ) -> Self:
        """Counts the FLOPs of a step over some images of one shape (C H W), on a device of this product name."""
        flops = 0.0 if shape is None else images * training_flops(network, shape)
        return cls(flops, peak_tflops(device, precision))

    def rates(self, seconds: float) -> tuple[float, float | None]:
        """Returns model FLOP/s in 1e12, and the MFU (None where the peak is not known), of a step of this duration."""
        model_tflops = self.flops / seconds / 1e12
        return model_tflops, model_tflops / self.peak_tflops if self.peak_tflops else None


def training_flops(network: nn.Module, shape: tuple[int, int, int]) -> float:
    """Counts the model FLOPs of one image in training, by one forward pass that changes nothing.

    Args:
        network: not compiled yet; takes raw pixels, B C H W.
        shape: C H W of the training crop.
    """
    # Detached: the counter looks for the graph of what requires a gradient, and views made without one have none.
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
    images = torch.zeros(1, *shape, device=next(network.parameters()).device)
    training = network.training
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            torch.func.functional_call(network.eval(), weights, (images, True))
    finally:
        network.train(training)
    return 3.0 * counter.get_total_flops() - 2.0 * _without_backward(network, counter)


def _without_backward(network: nn.Module, counter: FlopCounterMode) -> float:
    """Returns the forward FLOPs of a frozen trunk: it comes first, so that nothing flows back through it."""
    backbone = getattr(network, "backbone", None)
    if backbone is None or any(parameter.requires_grad for parameter in backbone.trunk.parameters()):
        return 0.0
    counts, name = counter.get_flop_counts(), f"{type(network).__name__}.backbone"
    return float(sum(counts[name].values()) - sum(counts.get(f"{name}.neck", {}).values()))


def peak_tflops(name: str, precision: Precision) -> float | None:
    """Returns the peak of a GPU in 1e12 FLOP/s by its product name; None where it is not in the table.

    A part of a GPU (a MIG instance) has no peak of its own here.
    """
    if re.search(r"\bMIG\b", name):
        return None
    matches = (peaks[precision] for words, peaks in PEAK_TFLOPS.items() if re.search(rf"\b{words}\b", name))
    return next(matches, None)

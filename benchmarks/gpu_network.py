"""Bare backbone, textbook network and ours on one GPU: images/s, MFU and memory, in training and inference.

    python benchmarks/gpu_network.py                              # the whole table, 512x512, ConvNeXt-B
    python benchmarks/gpu_network.py --device cpu --backbone convnext_atto --size 64 --batches 1 --modes fp32 --steps 1

Needs torch (2.11 or later) and timm, and this checkout; nothing else of the project. A setting that does not fit into
memory, or that the device lacks, gives a row with the reason. TFLOP/s count the multiplications and additions of the
textbook network (`FlopCounterMode`), for both networks. So a cheaper route to the same result shows as a higher rate.
MFU is the share of the device's peak at this precision, where it is known.

Aims: a training step at most 1.25 times the bare backbone's, and 1.4 times as fast as the textbook network's.
"""

import argparse
import contextlib
import datetime
import gc
import platform
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from d2ls.losses import D2LSLoss
from d2ls.models import D2LSOutput, build_model
from d2ls.training.flops import peak_tflops
from tests.named_weights import NORMALIZED
from tests.textbook_network import TextbookD2LS

MODES = ("fp32", "tf32", "bf16", "bf16+channels_last", "bf16+compile")
NETWORKS = ("backbone", "textbook", "ours")


class Bare(torch.nn.Module):
    """The backbone alone, with a scalar to differentiate."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images, auxiliary=False):
        return self.backbone(images)


def build(network, options):
    torch.manual_seed(0)
    ours = build_model(
        backbone=options.backbone,
        num_classes=options.classes,
        stages=options.stages,
        normalization=NORMALIZED,
    )
    if network == "ours":
        return ours
    if network == "backbone":
        return Bare(ours.backbone)
    return TextbookD2LS(ours.backbone, ours.backbone.channels, options.classes, options.stages)


def scalar(network, output, labels, loss):
    """Returns the value to differentiate: the mean of the maps, or the training loss with all its terms."""
    if network == "backbone":
        return sum(map_.float().mean() for map_ in output)
    if network == "textbook":
        output = D2LSOutput(output[0], output[1], output[3][0], output[2])
    return loss(output, labels).total


def gflop(network, training, options):
    """Returns the GFLOP per image of a step, by the textbook formula."""
    model = build("backbone" if network == "backbone" else "textbook", options)
    images = torch.randn(1, 3, options.size, options.size)
    labels = torch.zeros(1, options.size, options.size, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(training):
        output = model(images, training)
        if training:
            kind = "backbone" if network == "backbone" else "textbook"
            scalar(kind, output, labels, D2LSLoss()).backward()
    return counter.get_total_flops() / 1e9


def prepare(network, mode, options):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = mode != "fp32"
    model = build(network, options).to(options.device)
    if "channels_last" in mode:
        model = model.to(memory_format=torch.channels_last)
    return torch.compile(model) if "compile" in mode else model


def measure(network, mode, batch, training, options):
    """Runs one setting; returns seconds per step and peak bytes."""
    model = prepare(network, mode, options).train(training)
    layout = torch.channels_last if "channels_last" in mode else torch.contiguous_format
    images = torch.randn(batch, 3, options.size, options.size, device=options.device).to(memory_format=layout)
    labels = torch.randint(0, options.classes, (batch, options.size, options.size), device=options.device)
    loss = D2LSLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True) if training else None

    def step():
        low = torch.autocast(options.device, torch.bfloat16) if "bf16" in mode else contextlib.nullcontext()
        with torch.set_grad_enabled(training):
            with low:
                output = model(images, training)
            if optimizer is not None:
                scalar(network, output, labels, loss).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

    for _ in range(options.warmup):
        step()
    return timed(step, options)


def timed(step, options):
    on_gpu = options.device == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    for _ in range(options.steps):
        step()
    if on_gpu:
        torch.cuda.synchronize()
    memory = torch.cuda.max_memory_allocated() if on_gpu else float("nan")
    return (time.perf_counter() - start) / options.steps, memory


def rows(training, options):
    """Yields a line per setting; ratios are those of step times with the same settings."""
    work = {network: gflop(network, training, options) for network in ("backbone", "textbook")}
    for mode in options.modes:
        for batch in options.batches:
            seconds = {}
            for network in NETWORKS:
                try:
                    seconds[network], memory = measure(network, mode, batch, training, options)
                except (torch.OutOfMemoryError, RuntimeError) as error:
                    print(
                        f"| {mode} | {batch} | {network} | {type(error).__name__}: {str(error)[:60]!r} | | | | | |",
                        flush=True,
                    )
                    continue
                finally:
                    gc.collect()
                    torch._dynamo.reset()
                    if options.device == "cuda":
                        torch.cuda.empty_cache()
                speed = batch / seconds[network]
                flops = speed * work["backbone" if network == "backbone" else "textbook"] / 1e3
                ratios = [
                    f"{seconds[network] / seconds[o]:.2f}" if o in seconds else "" for o in NETWORKS[:2]
                ]
                peak = peak_tflops(options.name, mode.split("+")[0])
                cells = [
                    mode,
                    batch,
                    network,
                    f"{speed:.1f}",
                    f"{flops:.2f}",
                    f"{flops / peak:.1%}" if peak else "",
                    f"{memory / 2**30:.2f}",
                    *ratios,
                ]
                print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--backbone", default="convnext_base")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--classes", type=int, default=7)
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=5)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device; --device cpu with a small --size tries the script")
    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or "CPU"
    options.name = torch.cuda.get_device_name() if options.device == "cuda" else ""
    print(
        f"{datetime.date.today()}; {device}; torch {torch.__version__}, timm {timm.__version__}; `{' '.join(sys.argv)}`"
    )
    print(f"{options.backbone}, {options.size}x{options.size}, K = {options.classes}, L = {options.stages}")
    for training in (True, False):
        print(f"\n## {'training step (loss, backward, AdamW)' if training else 'inference'}\n")
        print(
            "| mode | batch | network | images/s | TFLOP/s | MFU | peak GiB | time / backbone | time / textbook |"
        )
        print("|---|---|---|---|---|---|---|---|---|", flush=True)
        rows(training, options)


if __name__ == "__main__":
    main()

"""Our network against the textbook one: time, bytes kept for backward, peak memory.

    python benchmarks/head.py                       # the head, at the widths of ConvNeXt-B, 512x512, K=7, L=3
    python benchmarks/head.py --widths tiny --size 256
    python benchmarks/head.py --whole               # with the backbone in front

Both run in one process on the same inputs and weights, taking turns. The median of the ratios of all turns is shown.
Training computes the static branch too, inference does not. On a machine that others use at the same time,
`--cpu-time --threads 1` counts the processor time of this process instead of the time on the wall.
"""

import argparse
import datetime
import gc
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from d2ls.models import build_model
from d2ls.models.published import published_name
from tests.named_weights import NORMALIZED
from tests.textbook_network import TextbookD2LS

BACKBONES = {"base": "convnext_base", "small": "convnext_small", "tiny": "convnext_tiny"}
MIB = 2**20


def pair(widths, classes, stages):
    """Both networks with the same weights; the textbook one takes the backbone of ours."""
    torch.manual_seed(0)
    ours = build_model(
        backbone=BACKBONES[widths], num_classes=classes, stages=stages, normalization=NORMALIZED
    )
    theirs = TextbookD2LS(ours.backbone, ours.backbone.channels, classes, stages)
    state = ours.state_dict()
    with torch.no_grad():
        for name, value in theirs.state_dict().items():
            if not name.startswith("backbone.") and not name.endswith("k_proj.bias"):
                value.copy_(state[published_name(name)].view(value.shape))
    return ours, theirs


def runners(networks, whole, size, batch):
    """Functions from `auxiliary` to (logits, static logits or None)."""
    ours, theirs = networks
    if whole:
        images = torch.randn(batch, 3, size, size)
        return lambda aux: ours(images, aux)[:2], lambda aux: theirs(images, aux)[:2]
    channels = ours.backbone.channels
    maps = [
        torch.randn(batch, c, size // 4 >> i, size // 4 >> i, requires_grad=True)
        for i, c in enumerate(channels)
    ]
    return (
        lambda aux: ours.head(ours.aggregator(maps), maps[-1], aux)[:2],
        lambda aux: theirs.head(maps, aux)[:2],
    )


def infer(run):
    with torch.no_grad():
        run(False)


def forward(run):
    with torch.no_grad():
        run(True)


def train(run):
    logits, static = run(True)
    (logits.square().mean() + 0.4 * static.square().mean()).backward()


def timed(function, run, clock=time.perf_counter):
    gc.collect()
    start = clock()
    function(run)
    return clock() - start


def kept_bytes(run):
    """Bytes of distinct memory that autograd keeps between forward and backward, parameters included."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run(True)
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


def peak(options, which):
    """Growth of the resident set by one training step, in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--peak",
        which,
        "--widths",
        options.widths,
        "--size",
        str(options.size),
    ]
    command += [
        "--classes",
        str(options.classes),
        "--stages",
        str(options.stages),
        "--batch",
        str(options.batch),
    ]
    command += ["--threads", str(options.threads)] + ["--whole"] * options.whole
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure_peak(options):
    both = runners(
        pair(options.widths, options.classes, options.stages), options.whole, options.size, options.batch
    )
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again at what is resident now
    before = resident("VmHWM")
    train(both[options.peak == "textbook"])
    print(resident("VmHWM") - before)


def resident(field):
    """Bytes of one line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def report(options):
    ours, theirs = runners(
        pair(options.widths, options.classes, options.stages), options.whole, options.size, options.batch
    )
    with torch.no_grad():
        pairs = list(zip(ours(True), theirs(True), strict=True))
    difference = max(float((a - b).norm() / b.norm()) for a, b in pairs)
    clock = time.process_time if options.cpu_time else time.perf_counter
    what = "whole network" if options.whole else "head alone"
    print(f"\n## {what}, {BACKBONES[options.widths]}, {options.size}x{options.size}, batch {options.batch}\n")
    print(
        f"K = {options.classes}, L = {options.stages}, float32, {options.threads} threads, {clock.__name__}; ",
        end="",
    )
    print(f"outputs differ by {difference:.1e} (relative)\n")
    print("| | textbook | ours | textbook / ours |\n|---|---|---|---|")
    for name, function in (
        ("inference", infer),
        ("forward, both branches", forward),
        ("forward + backward", train),
    ):
        timed(function, ours), timed(function, theirs)
        turns = [
            (timed(function, theirs, clock), timed(function, ours, clock)) for _ in range(options.rounds)
        ]
        low = [min(times) for times in zip(*turns, strict=True)]
        ratio = statistics.median(a / b for a, b in turns)
        print(
            f"| {name}, best of {options.rounds} | {low[0]:.3f} s | {low[1]:.3f} s | {ratio:.2f} (median) |",
            flush=True,
        )
    for name, values in (
        ("kept for backward", (kept_bytes(theirs), kept_bytes(ours))),
        ("peak of a training step", (peak(options, "textbook"), peak(options, "ours"))),
    ):
        a, b = (value / MIB for value in values)
        print(f"| {name} | {a:.0f} MiB | {b:.0f} MiB | {a / b:.2f} (ours is {b / a:.2f} of it) |", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", choices=BACKBONES, default="base")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--classes", type=int, default=7)
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--whole", action="store_true", help="with the backbone in front")
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor time of the process, not wall time"
    )
    parser.add_argument("--peak", choices=["ours", "textbook"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        measure_peak(options)
        return
    model = next(
        (line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ":"
    )
    print(
        f"{datetime.date.today()}; {model.split(':')[1].strip()}, {os.cpu_count()} cores; torch {torch.__version__}; ",
        end="",
    )
    print(
        f"Python {platform.python_version()}; load {os.getloadavg()[0]:.1f}; `{' '.join(['python', *sys.argv])}`"
    )
    report(options)


if __name__ == "__main__":
    main()

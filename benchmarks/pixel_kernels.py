"""Do the hand-written gradients of `pixel_kernels` need less time and memory than `torch.utils.checkpoint`?

    python -m benchmarks.pixel_kernels                          # head alone, widths of ConvNeXt-B, 512x512, K=7, L=3
    python -m benchmarks.pixel_kernels --widths tiny --size 256

Three ways to compute the same head, in one process and in turns, in processor time of one thread: `kernels`; `plain`
(the plain operations of `d2ls/models/pixel_ops.py`, autograd keeps what it likes); `checkpointed` (plain, each of its
functions recomputed in the backward pass). Memory is the growth of the resident set, each way in a process of its own:
after the forward pass (kept for backward), and at most during a training step (peak).
"""

import argparse
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch.utils.checkpoint import checkpoint

from benchmarks.head import BACKBONES, MIB, forward, resident, timed, train
from d2ls.models import build_model, pixel_ops

WAYS = ("kernels", "plain", "checkpointed")
FUNCTIONS = ("attend_pixels", "refine_pixels", "upsample")
KERNELS = {name: getattr(pixel_ops, name) for name in FUNCTIONS}


def choose(way):
    """Puts one way in place of what `pixel_ops` offers."""
    for name in FUNCTIONS:
        function = getattr(pixel_ops, f"plain_{name}")
        chosen = {
            "kernels": KERNELS[name],
            "plain": function,
            "checkpointed": partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False),
        }[way]
        setattr(pixel_ops, name, chosen)


def head(options):
    torch.manual_seed(0)
    model = build_model(
        backbone=BACKBONES[options.widths], num_classes=options.classes, stages=options.stages
    )
    sizes = [(channels, options.size // 4 >> i) for i, channels in enumerate(model.backbone.channels)]
    maps = [torch.randn(1, channels, side, side, requires_grad=True) for channels, side in sizes]
    return lambda auxiliary: model.head(model.aggregator(maps), maps[-1], auxiliary)[:2]


def measure_memory(options):
    choose(options.memory)
    run = head(options)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again at what is resident now
    before = resident("VmRSS")
    logits, static = run(True)
    kept = resident("VmRSS") - before
    (logits.square().mean() + 0.4 * static.square().mean()).backward()
    print(kept, resident("VmHWM") - before)


def report(options):
    run, seconds = head(options), {}
    for function in (forward, train):
        for way in WAYS:
            choose(way)
            timed(function, run)
        for _ in range(options.rounds):
            for way in WAYS:
                choose(way)
                taken = timed(function, run, time.process_time)
                seconds.setdefault((function, way), []).append(taken)
    print(
        f"\n| {options.widths}, {options.size}x{options.size} | " + " | ".join(WAYS) + " |\n|---|---|---|---|"
    )
    for function, name in ((forward, "forward"), (train, "forward + backward")):
        turns = [seconds[function, way] for way in WAYS]
        ratios = [statistics.median(a / b for a, b in zip(turn, turns[0], strict=True)) for turn in turns]
        cells = [f"{min(turn):.3f} s ({ratio:.2f})" for turn, ratio in zip(turns, ratios, strict=True)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    memory = []
    for way in WAYS:
        command = [sys.executable, "-m", "benchmarks.pixel_kernels", *sys.argv[1:], "--memory", way]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        memory.append([int(word) / MIB for word in text.split()])
    for name, values in zip(("kept for backward", "peak"), zip(*memory, strict=True), strict=True):
        print(f"| {name} | " + " | ".join(f"{v:.0f} MiB ({v / values[0]:.2f})" for v in values) + " |")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", choices=BACKBONES, default="base")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--classes", type=int, default=7)
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    measure_memory(options) if options.memory else report(options)


if __name__ == "__main__":
    main()

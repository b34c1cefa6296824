"""The cost of an evaluation on a CPU, alone and with other programs on the machine.

    python benchmarks/cpu_inference.py
    python benchmarks/cpu_inference.py --backbone convnext_atto --megapixels 10 --busy 0 1 2

Batches of 4 windows of 512 pixels through D2LS, raw pixels in, class ids out, in four ways:

    spin      the whole batch in one forward pass; torch's threads spin while they wait for each other
    sleep     the same with OMP_WAIT_POLICY=PASSIVE
    slices    one thread for each part of the batch (`d2ls.inference`)
    commands  slices, and freed memory is kept (`pipeline.compute`): what the commands do

Each way is a fresh process, as the policy is read when torch is loaded; ways take turns. `busy` is the number of
processes that compute beside it.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WAYS = ("spin", "sleep", "slices", "commands")
BATCH, SIZE = 4, 512


def evaluate(options):
    """Returns wall and processor seconds for all batches."""
    if options.way == "commands":
        from pipeline.compute import set_up_process

        set_up_process()
    import torch

    from d2ls.inference.threads import SlicedForward
    from d2ls.models import build_model

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    network = build_model(backbone=options.backbone, num_classes=7, stages=3).eval()
    forward = SlicedForward(torch.device("cpu"), threads=None if options.way in WAYS[2:] else 1)
    if options.way in WAYS[2:]:
        network = network.to(memory_format=torch.channels_last)
    images = torch.randint(0, 256, (BATCH, SIZE, SIZE, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    forward(network, images)
    wall, work = time.perf_counter(), time.process_time()
    for _ in range(round(options.megapixels * 1e6 / (BATCH * SIZE * SIZE))):
        forward(network, images).argmax(1)
    return time.perf_counter() - wall, time.process_time() - work


def measure(way, busy):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("OMP_NUM_THREADS", None)
    environment |= {} if way == "spin" else {"OMP_WAIT_POLICY": "PASSIVE"}
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        words = [*sys.argv[1:], "--way", way]
        result = subprocess.run(
            [sys.executable, __file__, *words], env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
    finally:
        for other in others:
            other.kill()
            other.wait()
    return json.loads(result.stdout)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--megapixels", type=float, default=28)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(evaluate(options)))
        return
    import torch

    print(
        f"{datetime.date.today()}; {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; torch {torch.__version__}; "
        f"`{' '.join(sys.argv)}`\n\n| busy | way | wall s | CPU s | CPU s of a turn each |\n|---|---|---|---|---|"
    )
    for busy in options.busy:
        results = {way: [] for way in options.ways}
        for _ in range(options.turns):
            for way in options.ways:
                results[way].append(measure(way, busy))
        for way, turns in results.items():
            wall, work = (min(column) for column in zip(*turns, strict=True))
            repeats = ", ".join(f"{cpu:.1f}" for _, cpu in turns)
            print(f"| {busy} | {way} | {wall:.1f} | {work:.1f} | {repeats} |", flush=True)
    print(f"\nload at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()

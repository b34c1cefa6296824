"""What do torch's waiting threads cost beside other work? Forward passes with and without OMP_WAIT_POLICY=PASSIVE.

    python benchmarks/threads.py
    python benchmarks/threads.py --backbone convnext_atto --busy 0 --seconds 10

Each setting is a fresh process, as the policy is read when torch is loaded; settings take turns. `busy` is the number
of processes that compute beside it. A pass is a batch of 4 windows of 256 pixels through D2LS in inference mode.
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
POLICIES = ("spin", "sleep")


def passes(options):
    """Wall and processor seconds of each pass, for some seconds."""
    import torch

    from d2ls.models import build_model

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    network = build_model(backbone=options.backbone, num_classes=7, stages=3).eval().to(memory_format=layout)
    images = torch.randn(4, 3, 256, 256).contiguous(memory_format=layout)
    found = []
    with torch.inference_mode():
        network(images)
        begin = time.perf_counter()
        while not found or time.perf_counter() - begin < options.seconds:
            wall, work = time.perf_counter(), time.process_time()
            network(images)
            found.append((time.perf_counter() - wall, time.process_time() - work))
    return found


def measure(policy, busy, options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("OMP_NUM_THREADS", None)
    environment |= {"OMP_WAIT_POLICY": "PASSIVE"} if policy == "sleep" else {}
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        words = [*sys.argv[1:], "--worker"]
        made = subprocess.run(
            [sys.executable, __file__, *words], env=environment, capture_output=True, text=True, check=True
        )
    finally:
        for other in others:
            other.kill()
            other.wait()
    return json.loads(made.stdout)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(passes(options)))
        return
    import torch

    print(
        f"{datetime.date.today()}; {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; torch {torch.__version__}; "
        f"`{' '.join(sys.argv)}`\n\n| busy | waiting threads | passes | wall s, median | wall s, least | "
        "CPU s, mean | CPU s, least |\n|---|---|---|---|---|---|---|"
    )
    for busy in options.busy:
        found = {policy: [] for policy in POLICIES}
        for _ in range(options.turns):
            for policy in POLICIES:
                found[policy] += measure(policy, busy, options)
        for policy, rows in found.items():
            wall, work = (sorted(column) for column in zip(*rows, strict=True))
            print(
                f"| {busy} | {policy} | {len(rows)} | {wall[len(wall) // 2]:.3f} | {wall[0]:.3f} "
                f"| {sum(work) / len(work):.3f} | {work[0]:.3f} |",
                flush=True,
            )
    print(f"\nload at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()

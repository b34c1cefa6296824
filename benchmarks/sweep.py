"""What does a trial cost beside its training loop, and what does resuming a sweep cost?

    python -m benchmarks.sweep               # about six minutes on two cores

The same tiny sweep, one trial at a time, runs with short and with long trials. What a trial takes is the time between
the ends of two trials; what grows with the epochs is the loop, the rest is the cost of a trial: starting Tune's and
Train's processes, imports, MLflow, checkpoints and figures. Then the finished sweep is resumed: nothing is left to do.
The results belong into benchmarks/results/sweep.md with date, hardware and load.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from tests import sweep_world

TRIALS = 4


def timed(place: Path, *words: str) -> float:
    """Seconds of a sweep's command line, which must end well."""
    started = time.perf_counter()
    subprocess.run(sweep_world.sweep(*words), cwd=place, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def between_ends(place: Path, name: str) -> list[float]:
    """Seconds from the end of a trial to the end of the next."""
    records = sweep_world.trials(place, name)
    assert len(records) == TRIALS, f"{name}: {sorted(records)}"
    files = [place / "runs" / name / "trials" / f"{key}.json" for key in records]
    ends = sorted(file.stat().st_mtime for file in files)
    return [after - before for before, after in itertools.pairwise(ends)]


def inside(place: Path, name: str) -> float:
    """Median seconds from the call of a trial to its return, without Tune's part."""
    return statistics.median(record["seconds"] for record in sweep_world.trials(place, name).values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, nargs=2, default=(2, 22), metavar=("SHORT", "LONG"))
    epochs = parser.parse_args().epochs
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, epochs {epochs}", flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-sweep-") as scratch:
        place = sweep_world.make_place(Path(scratch))
        common = ("tiny.yaml", "sweep.concurrent=1", "train.epochs=1")
        whole, walls, insides = {}, {}, {}
        for name, count in zip(("short", "long"), epochs, strict=True):
            whole[name] = timed(place, *common, "--name", name, f"sweep.trial.train.epochs={count}")
            walls[name] = statistics.median(between_ends(place, name))
            insides[name] = inside(place, name)
            print(
                f"{name}: {walls[name]:.1f} s a trial, {insides[name]:.1f} of them in the trial", flush=True
            )
        again = timed(place, "--resume", "short")
    epoch = (walls["long"] - walls["short"]) / (epochs[1] - epochs[0])
    cost = walls["short"] - epochs[0] * epoch
    tune = statistics.mean(walls[name] - insides[name] for name in walls)
    print("\n| | seconds |\n|---|---|")
    print(f"| a trial of {epochs[0]} epochs, of {epochs[1]} | {walls['short']:.1f}, {walls['long']:.1f} |")
    print(f"| of that, an epoch | {epoch:.2f} |")
    print(f"| **a trial beside its loop** | {cost:.1f} |")
    print(f"| of that, before and after the trial's own function (Tune) | {tune:.1f} |")
    print(
        f"| whole sweep: {TRIALS} short trials, final training, evaluation, registry | {whole['short']:.1f} |"
    )
    print(f"| `--resume` of the finished sweep | {again:.1f} |")


if __name__ == "__main__":
    main()

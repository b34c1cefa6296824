"""The cost of a trial in addition to its training loop, and the cost of `pipeline.train` and of resuming a sweep.

    python -m benchmarks.sweep               # about six minutes on two cores

The same tiny sweep, one trial at a time, runs with short and with long trials. The first trial is timed from its
proposal to its end, a later one from the end of the trial before. The part that grows with the epochs is the loop;
the rest is the cost of a trial: its process, imports, MLflow, checkpoints and figures. The reference is a plain
Python process that trains the same network on the same data with the same loop, without Ray and MLflow;
`pipeline.train` trains it with MLflow. Then the finished sweep is resumed, with nothing left to do. Write the results
into benchmarks/results/sweep.md with date, hardware and load.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests import tiny_sweeps

TRIALS = 4
KINDS = ("plain process", "first trial", "later trial", "pipeline.train")

PLAIN = """
import sys, tempfile
from d2ls.shards import ShardSet
from d2ls.training.process_group import ProcessGroup
from pipeline.config import load_recipe
from pipeline.training import build
recipe = load_recipe("tiny.yaml", [f"train.epochs={sys.argv[1]}"])
build.use_threads(recipe.cluster.cpus_per_worker)
shards, group = ShardSet.open(recipe.shards.uri), ProcessGroup()
loaders = build.loaders(recipe, shards, group)
with tempfile.TemporaryDirectory() as scratch:
    build.trainer(recipe, shards, group, loaders, checkpoints=scratch).run()
loaders.close()
"""


def timed(place: Path, *words: str) -> float:
    """Seconds of a command line, which must end well."""
    started = time.perf_counter()
    subprocess.run(words, cwd=place, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def of_trials(place: Path, name: str) -> tuple[float, float]:
    """Seconds of the first trial, and the median of the later ones."""
    records = tiny_sweeps.trials(place, name)
    assert len(records) == TRIALS, f"{name}: {sorted(records)}"
    files = [place / "runs" / name / "trials" / f"{key}.json" for key in records]
    ended = sorted((file.stat().st_mtime, file.stem) for file in files)
    later = [after[0] - before[0] for before, after in itertools.pairwise(ended)]
    return records[ended[0][1]]["seconds"], statistics.median(later)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, nargs=2, default=(2, 12), metavar=("SHORT", "LONG"))
    epochs = parser.parse_args().epochs
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, epochs {epochs}", flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-sweep-") as scratch:
        place = tiny_sweeps.make_place(Path(scratch))
        common = ("tiny.yaml", "sweep.max_concurrent_trials=1", "train.epochs=1")
        whole: dict[str, float] = {}
        walls: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for name, count in zip(("short", "long"), epochs, strict=True):
            words = tiny_sweeps.sweep(*common, "--name", name, f"sweep.trial_overrides.train.epochs={count}")
            whole[name] = timed(place, *words)
            first, later = of_trials(place, name)
            plain = timed(place, sys.executable, "-c", PLAIN, str(count))
            train = [sys.executable, "-m", "pipeline.train", "tiny.yaml", "--name", f"train-{name}"]
            alone = timed(place, *train, f"train.epochs={count}")
            for kind, seconds in zip(KINDS, (plain, first, later, alone), strict=True):
                walls[kind].append(seconds)
            print(f"{name}: {dict(zip(KINDS, (plain, first, later, alone), strict=True))}", flush=True)
        again = timed(place, *tiny_sweeps.sweep("--resume", "short"))
    apart = epochs[1] - epochs[0]
    print(f"\n| seconds | {' | '.join(KINDS)} |\n|---|{'---|' * len(KINDS)}")
    for row, count in enumerate(epochs):
        print(f"| {count} epochs | {' | '.join(f'{walls[kind][row]:.1f}' for kind in KINDS)} |")
    epoch = {kind: (long - short) / apart for kind, (short, long) in walls.items()}
    print(f"| of that, an epoch | {' | '.join(f'{epoch[kind]:.2f}' for kind in KINDS)} |")
    beside = [f"{walls[kind][0] - epochs[0] * epoch[kind]:.1f}" for kind in KINDS]
    print(f"| **beside the loop** | {' | '.join(beside)} |")
    print("\n| | seconds |\n|---|---|")
    print(
        f"| whole sweep: {TRIALS} short trials, final training, evaluation, registry | {whole['short']:.1f} |"
    )
    print(f"| `--resume` of the finished sweep | {again:.1f} |")


if __name__ == "__main__":
    main()

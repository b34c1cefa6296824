"""What does a trial cost beside its training loop, and what does resuming a sweep cost?

    python -m benchmarks.sweep               # about ten minutes on two cores

The same tiny sweep, one trial at a time, runs with short and with long trials. What a trial takes is the time between
the ends of two trials; what grows with the epochs is the loop, the rest is the cost of a trial: starting Tune's and
Train's processes, imports, MLflow, checkpoints and figures. The yardstick is a plain Python process that trains the
same network on the same data by the same loop, without Ray and MLflow. Then the finished sweep is resumed: nothing is
left to do. The results belong into benchmarks/results/sweep.md with date, hardware and load.
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

from tests import sweep_world

TRIALS = 4

PLAIN = """
import sys, tempfile
from d2ls.shards import ShardSet
from d2ls.training.ranks import Ranks
from pipeline.config import load_recipe
from pipeline.training import build
recipe = load_recipe("tiny.yaml", [f"train.epochs={sys.argv[1]}"])
build.use_threads(recipe.cluster.cpus_per_worker)
shards, ranks = ShardSet.open(recipe.shards.uri), Ranks()
loaders = build.loaders(recipe, shards, ranks)
with tempfile.TemporaryDirectory() as scratch:
    build.trainer(recipe, shards, ranks, loaders, checkpoints=scratch).run()
loaders.close()
"""


def timed(place: Path, *words: str) -> float:
    """Seconds of a command line, which must end well."""
    started = time.perf_counter()
    subprocess.run(words, cwd=place, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def between_ends(place: Path, name: str) -> list[float]:
    """Seconds from the end of a trial to the end of the next."""
    records = sweep_world.trials(place, name)
    assert len(records) == TRIALS, f"{name}: {sorted(records)}"
    files = [place / "runs" / name / "trials" / f"{key}.json" for key in records]
    ends = sorted(file.stat().st_mtime for file in files)
    return [after - before for before, after in itertools.pairwise(ends)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, nargs=2, default=(2, 12), metavar=("SHORT", "LONG"))
    epochs = parser.parse_args().epochs
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, epochs {epochs}", flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-sweep-") as scratch:
        place = sweep_world.make_place(Path(scratch))
        common = ("tiny.yaml", "sweep.concurrent=1", "train.epochs=1")
        whole, walls, plain = {}, {}, {}
        for name, count in zip(("short", "long"), epochs, strict=True):
            words = sweep_world.sweep(*common, "--name", name, f"sweep.trial.train.epochs={count}")
            whole[name] = timed(place, *words)
            walls[name] = statistics.median(between_ends(place, name))
            plain[name] = timed(place, sys.executable, "-c", PLAIN, str(count))
            print(
                f"{name}: {walls[name]:.1f} s a trial, {plain[name]:.1f} a plain process",
                flush=True,
            )
        again = timed(place, *sweep_world.sweep("--resume", "short"))
    apart = epochs[1] - epochs[0]
    epoch, plain_epoch = ((times["long"] - times["short"]) / apart for times in (walls, plain))
    cost, plain_cost = walls["short"] - epochs[0] * epoch, plain["short"] - epochs[0] * plain_epoch
    print("\n| seconds | a trial | plain process | ratio |\n|---|---|---|---|")
    for name, count in zip(("short", "long"), epochs, strict=True):
        ratio = walls[name] / plain[name]
        print(f"| {count} epochs | {walls[name]:.1f} | {plain[name]:.1f} | {ratio:.2f} |")
    print(f"| of that, an epoch | {epoch:.2f} | {plain_epoch:.2f} | {epoch / plain_epoch:.2f} |")
    print(f"| **beside the loop** | {cost:.1f} | {plain_cost:.1f} | {cost / plain_cost:.2f} |")
    print("\n| | seconds |\n|---|---|")
    print(
        f"| whole sweep: {TRIALS} short trials, final training, evaluation, registry | {whole['short']:.1f} |"
    )
    print(f"| `--resume` of the finished sweep | {again:.1f} |")


if __name__ == "__main__":
    main()

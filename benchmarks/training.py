"""The cost of Ray Train compared with torchrun, the gain of a second worker, and the cost of a checkpoint.

    python -m benchmarks.training                 # about eight minutes on two cores
    python -m benchmarks.training --steps 200 --backbone convnext_atto --side 256

Each kind of run is made `--rounds` times, in turn; the median counts. CPU seconds are those of all threads of a worker
process from the end of the first step to the end of the last; unlike wall times, they are valid on a busy machine.
"beside the loop's thread" is the share of a worker's CPU time that its other threads take (Ray's own, gloo's);
"start" has three times: until the train function begins, for the imports, and until the first step.

Write the results into benchmarks/results/training.md with date, hardware and load.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.mlflow_processes import free_port

SAMPLES = 80


def train_here(job, started):
    """Runs the loop as one rank of the current process group; returns the times."""
    import torch

    from d2ls.shards import ShardSet
    from d2ls.training.callbacks import Callback
    from d2ls.training.process_group import ProcessGroup
    from pipeline.config import parse_recipe
    from pipeline.training import build

    class Clock(Callback):
        """Wall and CPU seconds of this process at the end of every step."""

        marks = []

        def on_step(self, report):
            self.marks.append((time.time(), time.perf_counter(), time.process_time(), time.thread_time()))

    imported = time.time()
    torch.set_num_threads(1)
    recipe, clock = parse_recipe(job["values"]), Clock()
    group = ProcessGroup.current()
    shards = ShardSet.open(recipe.shards.uri)
    loaders = build.loaders(recipe, shards, group)
    trainer = build.trainer(recipe, shards, group, loaders, checkpoints=job["checkpoints"], callbacks=[clock])
    if not job["checkpoints"]:
        trainer.checkpointer = None
    for metrics in trainer.epochs():
        if job["ray"]:
            from ray import train

            train.report(metrics)
    loaders.close()
    steps = len(clock.marks) - 1
    wall, cpu, loop = ((clock.marks[-1][part] - clock.marks[0][part]) / steps for part in (1, 2, 3))
    return {
        "wall": wall,
        "cpu": cpu,
        "beside": cpu - loop,
        "images": recipe.train.global_batch_size,
        "started": started,
        "imported": imported,
        "first_step": clock.marks[0][0],
        "rank": group.rank,
    }


def ray_worker(job):
    """The training function of Ray Train."""
    started = time.time()
    results = train_here(job, started)
    if results["rank"] == 0:
        Path(job["answer"]).write_text(json.dumps(results))


def torchrun_worker(job):
    """The training function of torchrun."""
    import torch.distributed as dist

    started = time.time()
    dist.init_process_group("gloo")
    results = train_here(job, started)
    if results["rank"] == 0:
        Path(job["answer"]).write_text(json.dumps(results))
    dist.destroy_process_group()


class Bench:
    """Runs of one recipe in a scratch folder."""

    def __init__(self, scratch, values):
        self.scratch, self.values, self._count = scratch, values, 0

    def job(self, *, ray=False, checkpoints=False, **changes):
        from pipeline.config.recipe import set_keys

        self._count += 1
        folder = self.scratch / f"job-{self._count}"
        folder.mkdir()
        values = set_keys(self.values, {key.replace("__", "."): value for key, value in changes.items()})
        kept = str(folder / "checkpoints") if checkpoints else ""
        return {
            "values": values,
            "checkpoints": kept,
            "ray": ray,
            "answer": str(folder / "answer"),
            "folder": str(folder),
        }

    def torchrun(self, workers, copies=1, **options):
        """Trains in plain processes, in several independent copies at once; returns the slowest copy."""
        jobs = [self.job(**options) for _ in range(copies)]
        start, processes = time.time(), []
        for job in jobs:
            file = Path(job["folder"], "job.json")
            file.write_text(json.dumps(job))
            command = [
                sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(workers), "--master-addr",
                "127.0.0.1", "--master-port", str(free_port()), "-m", "benchmarks.training", "--job", str(file),
            ]  # fmt: skip
            processes.append(
                subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            )
        for process in processes:
            _, errors = process.communicate()
            assert process.returncode == 0, errors
        return self._found(
            max(jobs, key=lambda job: json.loads(Path(job["answer"]).read_text())["wall"]), start
        )

    def ray(self, workers, **options):
        """Trains on Ray Train."""
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        job, start = self.job(ray=True, **options), time.time()
        TorchTrainer(
            ray_worker,
            train_loop_config=job,
            scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 0.5}),
            run_config=RunConfig(storage_path=job["folder"], name="run"),
        ).fit()
        return self._found(job, start)

    def _found(self, job, start):
        results = json.loads(Path(job["answer"]).read_text())
        return {
            **{key: results[key] for key in ("wall", "cpu", "beside", "images")},
            "to the train function": results["started"] - start,
            "imports": results["imported"] - results["started"],
            "to the first step": results["first_step"] - results["imported"],
        }


def median(rounds):
    return {key: statistics.median(result[key] for result in rounds) for key in rounds[0]}


def measure(bench, given):
    """Returns the median of every kind of run, by name; the first of Ray's two groups runs without Ray."""
    from pipeline import cluster
    from pipeline.config import parse_recipe

    half = {"train__global_batch_size": given.batch // 2}
    every = {"train__checkpoint__every_epochs": 1}
    plain = {
        "torchrun, 1 worker": lambda: bench.torchrun(1),
        "torchrun, 1 worker, checkpoints": lambda: bench.torchrun(1, checkpoints=True, **every),
        "torchrun, 2 workers": lambda: bench.torchrun(2),
        "half a batch, alone": lambda: bench.torchrun(1, **half),
        "half a batch, two such processes at once": lambda: bench.torchrun(1, copies=2, **half),
    }
    beside = {
        "torchrun, 1 worker, Ray idle beside it": lambda: bench.torchrun(1),
        "Ray Train, 1 worker": lambda: bench.ray(1),
        "torchrun, 2 workers, Ray idle beside it": lambda: bench.torchrun(2),
        "Ray Train, 2 workers": lambda: bench.ray(2),
    }
    results = {} if given.beside_ray else run_all(plain, given.rounds)
    start = time.time()
    with contextlib.ExitStack() as stack:
        stack.enter_context(cluster.connect(parse_recipe(bench.values).cluster))
        print(f"Ray itself started in {time.time() - start:.1f} s", flush=True)
        results |= run_all(beside, given.rounds)
    return results


def run_all(kinds, rounds):
    results = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, run in kinds.items():
            results[name].append(run())
            print(f"  {name}: {results[name][-1]['wall'] * 1e3:.0f} ms", flush=True)
    return {name: median(result) for name, result in results.items()}


def show(results, steps):
    print("\n| run | wall ms a step | CPU ms a step | beside the loop's thread | images/s | start (s) |")
    print("|---|---|---|---|---|---|")
    for name, result in results.items():
        begin = [f"{result[key]:.1f}" for key in ("to the train function", "imports", "to the first step")]
        rate = result["images"] / result["wall"] * (2 if "two such" in name else 1)
        times = (
            f"{result['wall'] * 1e3:.1f} | {result['cpu'] * 1e3:.1f} | {result['beside'] / result['cpu']:.1%}"
        )
        print(f"| {name} | {times} | {rate:.1f} | {', '.join(begin)} |")

    def ratio(first, second, key="cpu"):
        return results[first][key] / results[second][key]

    print("\n| ratio | |\n|---|---|")
    for workers in ("1 worker", "2 workers"):
        value = ratio(f"Ray Train, {workers}", f"torchrun, {workers}, Ray idle beside it")
        print(f"| CPU a step, Ray Train over torchrun, {workers} | {value:.3f} |")
    one, two = "torchrun, 1 worker", "torchrun, 2 workers"
    if one not in results:
        return
    kept = results[f"{one}, checkpoints"]
    ceiling = ratio(one, "half a batch, two such processes at once", "wall")
    for workers, name in (("1 worker", one), ("2 workers", two)):
        value = ratio(f"Ray Train, {workers}", name, "wall")
        print(f"| wall a step, Ray Train over torchrun without any Ray, {workers} | {value:.3f} |")
    print(f"| 1 to 2 workers, torchrun | {ratio(one, two, 'wall'):.2f} |")
    print(
        f"| 1 to 2 workers, Ray Train | {ratio('Ray Train, 1 worker', 'Ray Train, 2 workers', 'wall'):.2f} |"
    )
    print(f"| the same work in two processes that never talk (what the machine gives) | {ceiling:.2f} |")
    print(
        f"| wall a step with a checkpoint every {steps} steps over none | {kept['wall'] / results[one]['wall']:.3f} |"
    )
    print(
        f"| CPU a step with a checkpoint every {steps} steps over none | {kept['cpu'] / results[one]['cpu']:.3f} |"
    )


def main():
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--steps", type=int, default=60)
    arguments.add_argument("--batch", type=int, default=4)
    arguments.add_argument("--side", type=int, default=128)
    arguments.add_argument("--backbone", default="test_convnext")
    arguments.add_argument("--rounds", type=int, default=2)
    arguments.add_argument(
        "--beside-ray", action="store_true", help="only what runs beside Ray: CPU ratios and start"
    )
    arguments.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.job:
        torchrun_worker(json.loads(given.job.read_text()))
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    from tests.tiny_recipes import recipe_values
    from tests.tiny_trainer import tiny_shards

    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {vars(given)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny_shards(folder / "shards", train=(SAMPLES // 2, SAMPLES // 2), side=given.side)
        steps = SAMPLES // given.batch
        values = recipe_values(
            folder,
            model__backbone=given.backbone,
            loader__augmentation__crop_size=given.side,
            train__global_batch_size=given.batch,
            train__epochs=max(1, given.steps // steps),
            train__evaluate_every=10**6,
        )
        show(measure(Bench(folder, values), given), steps)
    print(f"\nload at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()

"""What does Ray Train cost over the same loop in plain processes, and what does a checkpoint cost?

    python -m benchmarks.training                 # all parts
    python -m benchmarks.training --steps 60 --backbone convnext_atto --crop 128

CPU seconds are taken inside the workers between the second and the last step, so they hold on a busy machine too; wall
times do not. The results of a run belong into benchmarks/results/training.md with date, hardware and load.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch

from d2ls.shards import ShardSet
from d2ls.training.ranks import Ranks
from d2ls.training.reports import Callback
from pipeline import cluster
from pipeline.config import parse_recipe
from pipeline.training import build
from tests.train_world import recipe_values
from tests.training_world import run_ranks


class Clock(Callback):
    """Wall and CPU seconds of this process from the end of the first step of the run on."""

    def __init__(self):
        self.start = self.end = None
        self.steps = 0

    def on_step(self, report):
        now = (time.perf_counter(), time.process_time())
        if self.start is None:
            self.start = now
            return
        self.steps, self.end = self.steps + 1, now

    def result(self):
        wall, cpu = (end - start for start, end in zip(self.start, self.end, strict=True))
        return {"wall_ms": 1000 * wall / self.steps, "cpu_ms": 1000 * cpu / self.steps}


def train_here(values, folder):
    """The loop as one rank of whatever group there is."""
    torch.set_num_threads(1)
    recipe = parse_recipe(values)
    ranks = Ranks.current()
    shards = ShardSet.open(recipe.shards.uri)
    loaders = build.loaders(recipe, shards, ranks)
    clock = Clock()
    trainer = build.trainer(recipe, shards, ranks, loaders, checkpoints=folder, callbacks=[clock])
    if not folder:
        trainer.checkpointer = None
    trainer.run()
    loaders.close()
    return clock.result()


def ray_worker(config):
    from ray import train

    found = train_here(config["values"], config["folder"])
    if train.get_context().get_world_rank() == 0:
        Path(config["answer"]).write_text(repr((found, time.time())))


def on_ray(values, workers, scratch):
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    answer = scratch / "answer"
    start = time.time()
    TorchTrainer(
        ray_worker,
        train_loop_config={"values": values, "folder": "", "answer": str(answer)},
        scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(storage_path=str(scratch), name=f"bench-{workers}-{time.time_ns()}"),
    ).fit()
    found, end = eval(answer.read_text())
    return found, end - start


def main():
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--steps", type=int, default=30)
    arguments.add_argument("--batch", type=int, default=4)
    arguments.add_argument("--crop", type=int, default=64)
    arguments.add_argument("--backbone", default="test_convnext")
    arguments.add_argument("--rounds", type=int, default=3)
    given = arguments.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {given}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        steps_per_epoch = -(-11 // given.batch)
        values = recipe_values(
            folder,
            model__backbone=given.backbone,
            loader__augmentation__crop_size=given.crop,
            train__global_batch=given.batch,
            train__epochs=max(1, given.steps // steps_per_epoch),
            train__evaluate_every=10**6,
        )
        with cluster.connect(parse_recipe(values).cluster):
            for number in range(given.rounds):
                for workers in (1, 2):
                    plain = run_ranks(workers, train_here, values, "")[0]
                    kept = run_ranks(workers, train_here, values, str(folder / f"kept-{number}-{workers}"))[0]
                    ray, whole = on_ray(values, workers, folder)
                    show(f"{workers} plain", plain)
                    show(f"{workers} plain, a checkpoint every {steps_per_epoch} steps", kept, plain)
                    show(f"{workers} Ray Train (whole fit {whole:.0f} s)", ray, plain)


def show(name, found, yardstick=None):
    share = f"  CPU {found['cpu_ms'] / yardstick['cpu_ms'] - 1:+.1%}" if yardstick else ""
    print(
        f"{name:60} {found['wall_ms']:8.1f} ms wall  {found['cpu_ms']:8.1f} ms CPU a step{share}", flush=True
    )


if __name__ == "__main__":
    main()

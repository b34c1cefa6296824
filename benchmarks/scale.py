"""Does the plan of the loader work for 1 to 512 GPUs, and what is the load of storage and network? A simulation.

    python -m benchmarks.scale
    python -m benchmarks.scale --gpus 64 512 --samples 10000000 --link-gbit 100

Simulated, with the loader's own plan and without reading anything: steps, repeats, the shards that each node fetches
and holds at once, and the cost of planning an epoch for one rank. It also checks that every sample occurs once.
Computed: samples per second, requests, bytes and time of a gradient exchange, bytes and time of a checkpoint.
`--rate` is the number of samples per second that one GPU takes: measure yours with a short training
(speed/images_per_second); the default is a round number, not a measurement.
"""

import argparse
import math
import time
import tracemalloc
from dataclasses import dataclass

import numpy as np

from d2ls.data.sampler import EpochPlan, epoch_plan, rank_lanes

CHUNK_MB = 8.0
"""Bytes that the cache reads from the object store in one request."""


@dataclass(frozen=True)
class Setting:
    """One size of cluster and data.

    Attributes:
        gpus: ranks.
        gpus_per_node: ranks that share a cache.
        batch: samples per GPU and step.
        samples: of the training split.
        sample_mb: bytes of one in its shard, in MB.
        shard_mb: size of a shard.
        rate: samples per second and GPU.
    """

    gpus: int
    gpus_per_node: int
    batch: int
    samples: int
    sample_mb: float
    shard_mb: float
    rate: float

    @property
    def nodes(self) -> int:
        return math.ceil(self.gpus / self.gpus_per_node)

    def shards(self) -> np.ndarray:
        """Number of the shard of each sample."""
        return np.arange(self.samples) // max(1, round(self.shard_mb / self.sample_mb))

    def plan(self, epoch: int = 0) -> EpochPlan:
        return epoch_plan(
            np.bincount(self.shards()), global_batch_size=self.gpus * self.batch, seed=0, epoch=epoch
        )


def node_lanes(setting: Setting, node: int) -> list[int]:
    """Lanes of all ranks of a node."""
    ranks = range(node * setting.gpus_per_node, min(setting.gpus, (node + 1) * setting.gpus_per_node))
    return [lane for rank in ranks for lane in rank_lanes(setting.gpus * setting.batch, rank, setting.gpus)]


def simulate(setting: Setting) -> dict[str, float]:
    """Walks one epoch of every node."""
    plan, shards = setting.plan(), setting.shards()
    seen = np.zeros(setting.samples, dtype=np.int64)
    fetched, open_at_once = [], 0
    for node in range(setting.nodes):
        lanes = node_lanes(setting, node)
        rows = plan.schedule(lanes).rows  # T x L
        assert rows.shape == (plan.steps, len(lanes))
        np.add.at(seen, rows.ravel(), 1)
        touched = shards[rows]
        fetched.append(len(np.unique(touched)))
        open_at_once = max(open_at_once, _held(touched))
    assert seen.min() == 1, "a sample is missing"
    assert seen.sum() - setting.samples == plan.wrapped, "a sample repeats beyond the wrap-around"
    total = len(np.unique(shards))
    return {
        "steps": plan.steps,
        "repeats": plan.wrapped,
        "fetched": sum(fetched) / total,
        "node_gb": max(fetched) * setting.shard_mb / 1000,
        "held_gb": open_at_once * setting.shard_mb / 1000,
    }


def _held(touched: np.ndarray) -> int:
    """Returns the largest number of shards in use at any step, that is, between their first and last use."""
    steps = np.repeat(np.arange(len(touched)), touched.shape[1])
    flat = touched.ravel()
    names, index = np.unique(flat, return_inverse=True)
    first = np.full(len(names), len(touched))
    last = np.zeros(len(names), dtype=np.int64)
    np.minimum.at(first, index, steps)
    np.maximum.at(last, index, steps)
    change = np.zeros(len(touched) + 1, dtype=np.int64)
    np.add.at(change, first, 1)
    np.add.at(change, last + 1, -1)
    return int(change.cumsum().max())


def check_elastic(setting: Setting, worlds: tuple[int, ...] = (1, 8, 64)) -> None:
    """Checks that a global batch holds the same samples in the same order for any number of ranks."""
    plan = setting.plan(epoch=3)
    lanes = plan.global_batch_size
    whole = plan.schedule(range(lanes)).rows
    for world in worlds:
        parts = [plan.schedule(rank_lanes(lanes, rank, world)).rows for rank in range(world)]
        assert np.array_equal(np.concatenate(parts, axis=1), whole), world


def plan_cost(setting: Setting) -> tuple[float, float]:
    """Seconds that one rank takes for the plan of an epoch, and megabytes at its peak."""
    lengths, lanes = np.bincount(setting.shards()), setting.gpus * setting.batch
    tracemalloc.start()
    started = time.perf_counter()
    epoch_plan(lengths, global_batch_size=lanes, seed=0, epoch=0).schedule(rank_lanes(lanes, 0, setting.gpus))
    seconds = time.perf_counter() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return seconds, peak / 1e6


def network_bytes(backbone: str) -> tuple[int, int]:
    """Bytes of a gradient, and of a checkpoint with weights, AdamW's moments and Lookahead's slow weights."""
    import torch

    from d2ls.models import build_model

    with torch.device("meta"):
        model = build_model(backbone=backbone, num_classes=7, stages=3, pretrained=False)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return 4 * trained, 4 * trained * (1 + 2 + 1)


def arithmetic(setting: Setting, gradient: int) -> dict[str, float]:
    """Returns the load of storage and network, in the first epoch and later."""
    second = setting.gpus * setting.rate
    ring = 2 * (setting.gpus - 1) / setting.gpus * gradient
    return {
        "samples_s": second,
        "mb_s": second * setting.sample_mb,
        "requests_s": second * setting.sample_mb / CHUNK_MB,
        "steps_s": setting.rate / setting.batch,
        "exchange_mb": ring / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=50_000, help="training samples of 1024 x 1024 pixels")
    parser.add_argument("--sample-mb", type=float, default=2.1, help="a LoveDA scene as PNG with its mask")
    parser.add_argument("--shard-mb", type=float, default=64)
    parser.add_argument("--rate", type=float, default=25, help="samples a second and GPU")
    parser.add_argument("--batch", type=int, default=8, help="samples a step and GPU")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument("--link-gbit", type=float, default=100, help="network of a node, shared by its GPUs")
    parser.add_argument(
        "--store-gbit", type=float, default=10, help="what one rank writes to the object store"
    )
    parser.add_argument("--backbone", default="convnext_base")
    options = parser.parse_args()
    gradient, checkpoint = network_bytes(options.backbone)
    print(
        f"{options.samples} samples x {options.sample_mb:g} MB = {options.samples * options.sample_mb / 1000:.0f} GB, "
        f"{options.gpus_per_node} GPUs a node, batch {options.batch} a GPU, {options.rate:g} samples/s a GPU\n"
        f"{options.backbone}: gradient {gradient / 1e6:.0f} MB, checkpoint {checkpoint / 1e6:.0f} MB "
        f"({checkpoint * 8 / 1e9 / options.store_gbit:.1f} s at {options.store_gbit:g} Gbit/s)\n"
    )
    names = (
        "GPUs", "nodes", "steps", "repeats", "fetched x data", "GB a node", "GB held", "samples/s", "MB/s", "GET/s",
        "exchange MB", "exchange s", "of a step", "plan s", "plan MB",
    )  # fmt: skip
    print("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
    for gpus in options.gpus:
        setting = Setting(
            gpus, min(gpus, options.gpus_per_node), options.batch, options.samples, options.sample_mb,
            options.shard_mb, options.rate,
        )  # fmt: skip
        check_elastic(setting, tuple(world for world in (1, 8, gpus) if world <= gpus * options.batch))
        plan, worked = simulate(setting), arithmetic(setting, gradient)
        exchange = worked["exchange_mb"] * 8 / 1000 / options.link_gbit if setting.nodes > 1 else 0.0
        seconds, peak = plan_cost(setting)
        print(
            f"| {gpus} | {setting.nodes} | {plan['steps']} | {plan['repeats']} | {plan['fetched']:.3f} "
            f"| {plan['node_gb']:.1f} | {plan['held_gb']:.1f} | {worked['samples_s']:.0f} | {worked['mb_s']:.0f} "
            f"| {worked['requests_s']:.0f} | {worked['exchange_mb']:.0f} | {exchange:.3f} "
            f"| {exchange * worked['steps_s']:.0%} | {seconds:.2f} | {peak:.1f} |"
        )


if __name__ == "__main__":
    main()

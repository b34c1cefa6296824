"""Recipes for tiny training runs, and the same runs in plain gloo processes, as the reference for those on Ray."""

import hashlib

import psutil
import torch
from safetensors.torch import load

from d2ls import storage
from d2ls.shards import ShardSet
from d2ls.training.process_group import ProcessGroup
from pipeline.config import Recipe, parse_recipe
from pipeline.config.recipe import set_keys
from pipeline.training import build
from tests.rank_pool import RankPool
from tests.tiny_trainer import SIZE, tiny_shards


def recipe_values(folder, **changes):
    """Returns a recipe for `<folder>/shards`, which are made on first use; changes are dotted keys with `__`."""
    shards = folder / "shards"
    if not shards.exists():
        tiny_shards(shards)
    values = {
        "name": "tiny",
        "output_dir": str(folder / "runs"),
        "data": {"source": "loveda"},
        "shards": {"uri": str(shards)},
        "model": {"backbone": "test_convnext", "pretrained": False, "stages": 1},
        "loader": {"workers": 0, "augmentation": {"crop_size": SIZE}},
        "train": {"epochs": 3, "global_batch_size": 4, "optimizer": {"lr": 1e-3}},
        "cluster": {"workers": 2, "cpus_per_worker": 0.5, "address": "local"},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db", "system_metrics": False},
    }
    return set_keys(values, {key.replace("__", "."): value for key, value in changes.items()})


def tiny_recipe(folder, **changes) -> Recipe:
    return parse_recipe(recipe_values(folder, **changes))


def undisturbed(recipe, folder):
    """Trains the recipe in gloo processes without Ray; returns the digest of the last weights and the history."""
    world_size = recipe.cluster.worker_range[1]
    with RankPool() as pool:
        return pool.run(world_size, _train, recipe.to_dict(), str(folder))[0]


def _train(values, folder):
    recipe = parse_recipe(values)
    torch.set_num_threads(1)
    group = ProcessGroup.current()
    shards = ShardSet.open(recipe.shards.uri)
    loaders = build.loaders(recipe, shards, group)
    trainer = build.trainer(recipe, shards, group, loaders, checkpoints=folder)
    state = trainer.run()
    loaders.close()
    return _digest(trainer.network.state_dict()), [plain(row) for row in state.history]


def digest(checkpoint):
    """Returns the SHA-256 of all weights of a checkpoint on any storage."""
    return _digest(weights_of(checkpoint))


def weights_of(checkpoint):
    """All weights of a checkpoint, by name."""
    return load(storage.read_bytes(storage.join(checkpoint, "model.safetensors")))


def assert_undisturbed(result, expected):
    """Compares a run on Ray with the result of `undisturbed`; returns a text on the comparison."""
    weights, history = expected
    assert digest(result.last_checkpoint) == weights
    assert [plain(row) for row in result.history] == history
    return "none: weights and metrics of all epochs equal to the last bit"


def _digest(weights):
    actual = hashlib.sha256()
    for name in sorted(weights):
        actual.update(name.encode() + weights[name].contiguous().numpy().tobytes())
    return actual.hexdigest()


def plain(row):
    """Metrics without speeds, which differ from run to run."""
    return {key: value for key, value in row.items() if not key.startswith("speed/")}


def train_workers(driver=None):
    """Processes of Ray Train workers below a driver."""
    children = psutil.Process(driver).children(recursive=True)
    return [child for child in children if "RayTrainWorker" in " ".join(_command(child))]


def _command(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []

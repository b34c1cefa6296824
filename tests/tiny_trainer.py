"""A tiny network, tiny shards, and a trainer for them, without any recipe."""

import warnings
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from d2ls.bundle import ModelInfo
from d2ls.data import Augmentation, EvaluationLoader, TrainingLoader
from d2ls.losses import D2LSLoss
from d2ls.models import build_model
from d2ls.shards import INDEX_FILE, ShardSet
from d2ls.training.callbacks import Callback
from d2ls.training.checkpoint import Checkpointer
from d2ls.training.ema import ExponentialMovingAverage
from d2ls.training.evaluator import Evaluator
from d2ls.training.optimizer import build_optimizer
from d2ls.training.process_group import ProcessGroup
from d2ls.training.schedule import Schedule
from d2ls.training.train_state import seed_everything
from d2ls.training.trainer import Trainer, TrainerSettings

SIZE = 64


def tiny_shards(root, train=(6, 5), side=SIZE, samples=None):
    """Makes three splits; `samples` may name another maker of samples for a split."""
    from tests.shards import make_shards, picture

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for split, counts in {"train": train, "test": [2], "val": [3]}.items():
            sample = (samples or {}).get(split, picture)
            make_shards(root, counts, split=split, size=(side, side), sample=sample)
    index = pq.read_table(root / INDEX_FILE)  # the splits share no scene
    scenes = pc.binary_join_element_wise(index["split"], index["scene"], "-")
    pq.write_table(
        index.set_column(index.schema.get_field_index("scene"), "scene", scenes), root / INDEX_FILE
    )
    return ShardSet.open(str(root))


class Recorder(Callback):
    """Records all reports."""

    def __init__(self):
        self.steps, self.evaluations, self.epochs, self.checkpoints = [], [], [], []
        self.ended, self.closed = [], 0

    def on_step(self, report):
        self.steps.append(report)

    def on_evaluation(self, report, network):
        assert not network.training
        self.evaluations.append(report)

    def on_epoch(self, metrics):
        self.epochs.append(dict(metrics))

    def on_checkpoint(self, uri, report):
        self.checkpoints.append((Path(uri).name, report is not None))

    def on_end(self, state):
        self.ended.append(state.ended_early)

    def close(self):
        self.closed += 1


class StopAfter(Callback):
    """Ends the run as a kill would, after a number of steps of this process."""

    def __init__(self, steps):
        self.steps = steps

    def on_step(self, report):
        self.steps -= 1
        if self.steps == 0:
            raise KeyboardInterrupt


def make_trainer(
    shards,
    folder=None,
    *,
    epochs=2,
    total_steps=None,
    global_batch_size=4,
    backbone="test_convnext",
    contrastive="ratio",
    ema=None,
    lookahead=False,
    lr=1e-3,
    loss=None,
    group=None,
    device=None,
    callbacks=(),
    drop_path=0.0,
    **settings,
):
    """Builds a trainer for this rank; `settings` go to TrainerSettings."""
    group = group or ProcessGroup.current()
    seed_everything(0)
    # With 32 channels, equal sub-pixels would leave the upsampler's norm two values: a step function, which turns
    # rounding into large differences.
    network = build_model(
        backbone=backbone, num_classes=4, stages=1, embed_dim=32, heads=2, drop_path=drop_path,
        upsampling_init="published",
    ).to(group.device)  # fmt: skip
    loader = TrainingLoader(
        shards, "train", global_batch_size=global_batch_size, seed=3, rank=group.rank, world_size=group.world_size,
        augmentation=Augmentation(crop_size=SIZE, horizontal_flip=0.5, mosaic=0.25),
        pin_memory=group.device.type == "cuda",
    )  # fmt: skip
    selection = EvaluationLoader(shards, "val", batch_size=1, rank=group.rank, world_size=group.world_size)
    steps = loader.steps_per_epoch

    def describe(state):
        return ModelInfo.from_card(network, shards.card, window=SIZE, step=state.step)

    return Trainer(
        network=network,
        loss=loss or D2LSLoss(contrastive=contrastive),
        optimizer=build_optimizer(network, lr=lr, lookahead=lookahead),
        schedule=Schedule(
            lr=lr, steps_per_epoch=steps, total_steps=total_steps or steps * epochs, warmup=0.2
        ),
        batches=loader.epoch,
        evaluator=Evaluator(
            "val",
            shards.card.classes,
            lambda: selection,
            group,
            settings.get("precision", "fp32"),
        ),
        settings=TrainerSettings(global_batch_size=global_batch_size, seed=3, **settings),
        group=group,
        callbacks=callbacks,
        checkpointer=Checkpointer(str(folder), group, describe, {"seed": 3, "steps": steps})
        if folder
        else None,
        ema=ExponentialMovingAverage(network, ema) if ema else None,
        device=device,
    )


def weights(trainer):
    """Returns all numbers that a later step depends on."""
    result = {f"network.{name}": value.clone() for name, value in trainer.network.state_dict().items()}
    state = trainer.optimizer.state_dict()["state"]
    for index, values in state.items():
        result |= {f"optimizer.{index}.{name}": value.clone() for name, value in values.items()}
    if trainer.ema:
        result |= {f"averaged.{name}": value.clone() for name, value in trainer.ema.weights.items()}
    return result


def assert_equal(ours, theirs):
    """Compares bit for bit."""
    assert ours.keys() == theirs.keys()
    differing = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not differing, differing[:5]

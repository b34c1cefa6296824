"""Does the loader keep a GPU busy? The real training loop on made shards: images/s, memory, share of time waiting.

    python benchmarks/gpu_loader.py                               # ConvNeXt-B, crops of 512x512, batch 8, bf16
    python benchmarks/gpu_loader.py --device cpu --backbone test_convnext --size 64 --side 96 --batch 4 --samples 24

Needs torch (2.11 or later), timm and what `d2ls.data` imports. The aim is under 2 % of the time spent waiting. Each
epoch is a row; in the first one, files are read and kernels chosen.
"""

import argparse
import contextlib
import datetime
import os
import platform
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from d2ls.data import Augmentation, EvaluationLoader, TrainingLoader
from d2ls.losses import D2LSLoss
from d2ls.models import build_model
from d2ls.shards import ShardSet
from d2ls.training.callbacks import Callback
from d2ls.training.evaluator import Evaluator
from d2ls.training.optimizer import build_optimizer
from d2ls.training.process_group import ProcessGroup
from d2ls.training.schedule import Schedule
from d2ls.training.trainer import Trainer, TrainerSettings


class Rows(Callback):
    """Prints a row per epoch."""

    def __init__(self, batch):
        self.batch, self.steps = batch, []

    def on_step(self, report):
        self.steps.append(report)

    def on_epoch(self, metrics):
        whole = sum(report.seconds["step"] for report in self.steps)
        waited = sum(report.seconds["data"] for report in self.steps)
        share = self.steps[-1].mfu
        cells = (
            int(metrics["epoch"]), f"{len(self.steps) * self.batch / whole:.1f}", f"{waited / whole:.1%}",
            f"{self.steps[-1].memory_bytes / 2**30:.2f}", "" if share is None else f"{share:.1%}",
        )  # fmt: skip
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
        self.steps.clear()


def make_data(folder, options):
    from tests.shards import make_shards, picture

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        side = (options.side, options.side)
        make_shards(
            folder, [options.samples // 2, -(-options.samples // 2)], split="train", size=side, sample=picture
        )
        make_shards(folder, [1], split="val", size=side, sample=picture)
    return ShardSet.open(str(folder))


def train(shards, options):
    group = ProcessGroup.current(torch.device(options.device, 0 if options.device == "cuda" else None))
    network = build_model(
        backbone=options.backbone, num_classes=shards.card.classes.num_classes, stages=options.stages
    ).to(group.device)
    pinned = options.device == "cuda"
    augmentation = Augmentation(
        crop_size=options.size,
        scale=(0.5, 1.5),
        horizontal_flip=0.5,
        vertical_flip=0.5,
        brightness_contrast=0.25,
    )
    loader = TrainingLoader(
        shards, "train", global_batch_size=options.batch, augmentation=augmentation, seed=0, workers=options.workers,
        pin_memory=pinned,
    )  # fmt: skip
    selection = EvaluationLoader(shards, "val", batch_size=1, pin_memory=pinned, window=options.size)
    steps = loader.steps_per_epoch
    schedule = Schedule(lr=1e-4, steps_per_epoch=steps, total_steps=options.epochs * steps)
    settings = TrainerSettings(
        global_batch_size=options.batch, precision=options.precision, channels_last=options.channels_last,
        compile=options.compile, evaluate_every=options.epochs, sample_shape=(3, options.size, options.size),
    )  # fmt: skip
    with contextlib.closing(loader), contextlib.closing(selection):
        Trainer(
            network=network, loss=D2LSLoss(), optimizer=build_optimizer(network, lr=1e-4), schedule=schedule,
            batches=loader.epoch, evaluator=Evaluator("val", shards.card.classes, lambda: selection, group),
            settings=settings, group=group, callbacks=[Rows(options.batch)],
        ).run()  # fmt: skip


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--backbone", default="convnext_base")
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--size", type=int, default=512, help="side of the crops")
    parser.add_argument("--side", type=int, default=1024, help="side of the samples")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16"], default="bf16")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device; --device cpu with a small --size tries the script")
    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or "CPU"
    print(
        f"{datetime.date.today()}; {device}, {os.cpu_count()} CPUs; torch {torch.__version__}; `{' '.join(sys.argv)}`\n"
    )
    print("| epoch | images/s | waiting for the loader | peak GiB | MFU of the last step |")
    print("|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="d2ls-gpu-loader-") as folder:
        train(make_data(Path(folder), options), options)


if __name__ == "__main__":
    main()

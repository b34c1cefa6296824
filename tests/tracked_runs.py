"""A tiny shard set, a recipe, a network and a checkpoint for the tests of tracking and registry."""

import hashlib
import io
import json
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3
from PIL import Image

from d2ls.labels import ClassTable
from d2ls.shards import CARD_FILE, INDEX_FILE, INDEX_SCHEMA, DatasetCard, ShardFile, ShardSet, SplitCard
from pipeline.config import Recipe, parse_recipe

if TYPE_CHECKING:
    from torch import nn

    from d2ls.bundle import ModelInfo
    from pipeline.registry import ModelVersion
    from pipeline.tracking import Store
    from pipeline.training.run_folder import RunFolder

CLASSES = ClassTable.create(
    ["field", "forest", "water", "road"], [(226, 207, 125), (56, 118, 62), (64, 128, 200), (150, 150, 150)]
)
SPLITS = {"train": 6, "val": 5, "test": 3}


def make_shards(folder: Path, side: int = 96) -> ShardSet:
    """Writes plain tars with blobs of four classes, and their card and index."""
    rng = np.random.default_rng(7)
    rows, splits = [], {}
    for split, count in SPLITS.items():
        (folder / split).mkdir(parents=True)
        name = f"{split}/000000.tar"
        counts = np.zeros(4, dtype=np.int64)
        with tarfile.open(folder / name, "w") as tar:
            for number in range(count):
                image, labels = scene(rng, side)
                row = {"key": f"{split}_{number:03d}", "split": split, "scene": f"{split}{number}", "shard": name,
                       "image_suffix": "png", "height": side, "width": side}  # fmt: skip
                row["class_pixels"] = [int((labels == k).sum()) for k in range(4)]
                counts += row["class_pixels"]
                members = {"image.png": _png(image), "mask.png": _png(labels), "json": b"{}"}
                for suffix, content in members.items():
                    info = tarfile.TarInfo(f"{row['key']}.{suffix}")
                    info.size = len(content)
                    offset = tar.offset + 512
                    tar.addfile(info, io.BytesIO(content))
                    part = {"image.png": "image", "mask.png": "mask", "json": "meta"}[suffix]
                    row |= {f"{part}_offset": offset, f"{part}_length": len(content)}
                    if part != "meta":
                        row[f"{part}_crc32"] = zlib.crc32(content)
                rows.append(row)
        content = (folder / name).read_bytes()
        file = ShardFile(name, len(content), blake3(content).hexdigest(), count)
        digest = hashlib.sha256(content).hexdigest()
        splits[split] = SplitCard(count, count, tuple(counts.tolist()), 0, digest, (file,))
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), folder / INDEX_FILE)
    card = DatasetCard(
        name="blobs", source="loveda", protocol="clean", classes=CLASSES, bands=("red", "green", "blue"),
        dtype="uint8", max_value=255.0, mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2), ground_sampling_distance=0.5,
        tiling={}, codec={"name": "png"}, scene_check="disjoint", splits=splits, license="CC0-1.0",
        digest=hashlib.sha256(json.dumps(sorted(splits)).encode()).hexdigest(),
    )  # fmt: skip
    (folder / CARD_FILE).write_text(card.to_json())
    return ShardSet.open(str(folder))


def scene(rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Makes an image (H W 3) and its labels (H W): nearest of a few random centres, coloured with noise."""
    centres = rng.uniform(0, side, (9, 2))
    kinds = np.concatenate([np.arange(4), rng.integers(0, 4, 5)])
    grid = np.stack(np.mgrid[:side, :side], axis=-1)
    nearest = ((grid[:, :, None] - centres) ** 2).sum(-1).argmin(-1)
    labels = kinds[nearest].astype(np.uint8)
    noisy = CLASSES.colorize(labels).astype(np.float64) * 0.8 + rng.normal(0, 18, (side, side, 3))
    labels[:4] = 255
    return noisy.clip(0, 255).astype(np.uint8), labels


def make_recipe(shards: ShardSet, **values: object) -> Recipe:
    """A complete recipe on the shard set."""
    plain = {
        "name": "blobs", "description": "Coloured blobs.", "data": {"source": "loveda"},
        "shards": {"uri": shards.uri},
        "model": {"backbone": "convnext_atto", "pretrained": False, "stages": 1},
        "loss": {"contrastive": "infonce"},
        "loader": {"augmentation": {"crop_size": 64}},
        "train": {"epochs": 3, "global_batch_size": 2},
    }  # fmt: skip
    return parse_recipe(plain).with_values(values)


def make_store(folder: Path) -> "Store":
    """Opens the store `mlflow.db` in a folder. It is a copy of an earlier one, because that is faster."""
    from pipeline.config.tracking import TrackingConfig
    from pipeline.tracking import Store

    file = folder / "mlflow.db"
    if not file.exists():
        file.write_bytes(_new_database())
    return Store.open(TrackingConfig(uri="sqlite:///mlflow.db"), folder=folder)


@cache
def _new_database() -> bytes:
    from pipeline.tracking.mlflow_internals import create_database

    with tempfile.TemporaryDirectory() as scratch:
        create_database(Path(scratch) / "mlflow.db", (Path(scratch) / "mlartifacts").as_uri())
        return (Path(scratch) / "mlflow.db").read_bytes()


def make_run(
    store: "Store", storage: Path, name: str, shards: ShardSet, recipe: Recipe, seed: int = 0
) -> "RunFolder":
    """Writes the folder of a finished training with one checkpoint, and its MLflow run."""
    from pipeline.training import tracked_run
    from pipeline.training.run_folder import RunFolder

    folder = RunFolder.of(str(storage), name)
    folder.create(recipe)
    folder.claim()
    with tracked_run.ended(folder, last=True):
        tracked_run.open_run(store, recipe, shards.card, folder, "training")
        checkpoints = storage / name / "checkpoints"
        make_checkpoint(checkpoints / "step-30", shards, recipe, seed)
        (checkpoints / "best.json").write_text(json.dumps({"checkpoint": "step-30", "step": 30}))
    tracked_run.settle(store, folder)
    return folder


def make_checkpoint(folder: Path, shards: ShardSet, recipe: Recipe, seed: int = 0) -> Path:
    """Writes the bundle of an untrained network."""
    import torch

    from d2ls.models import build_model
    from d2ls.models.saving import save_bundle

    torch.manual_seed(seed)
    model = recipe.model
    network = build_model(
        architecture=model.architecture,
        backbone=model.backbone,
        num_classes=4,
        stages=model.stages,
        embed_dim=32,
        heads=2,
    )
    folder.mkdir(parents=True)
    save_bundle(folder, network.eval(), _describe(network, shards, recipe))
    return folder


def _describe(network: "nn.Module", shards: ShardSet, recipe: Recipe) -> "ModelInfo":
    from d2ls.bundle import ModelInfo

    return ModelInfo.from_card(network, shards.card, window=64, recipe_digest=recipe.digest())


@dataclass(frozen=True)
class Registered:
    """An untrained network as `models:/d2ls-blobs@challenger`, with its shards, store and run."""

    shards: ShardSet
    recipe: Recipe
    store: "Store"
    checkpoint: Path
    run_id: str
    version: "ModelVersion"


def log_metrics(store: "Store", run_id: str, values: dict[str, float], step: int = 0) -> None:
    """Logs numbers of one step at once."""
    for key, value in values.items():
        store.client.log_metric(run_id, key, value, step=step)


def register_blobs(folder: Path, **values: object) -> Registered:
    """Makes shards, a store and a registered network below a folder; the values change the recipe."""
    from pipeline.registry import register_checkpoint

    shards = make_shards(folder / "shards")
    recipe = make_recipe(shards, **values)
    store = make_store(folder)
    checkpoint = make_checkpoint(folder / "checkpoint", shards, recipe)
    run = store.start_run(recipe, shards.card, "first")
    version = register_checkpoint(
        store, run, checkpoint, "d2ls-blobs", card=shards.card, evaluation=None, recipe=recipe
    )
    store.end_run(run)
    return Registered(shards, recipe, store, checkpoint, run, version)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def fill_store(folder: Path, epochs: int = 2) -> tuple["Store", str]:
    """Fills a store: a sweep of four trials with curves and figures, and a champion.

    Returns:
        The store, and the id of the sweep's run.
    """
    from d2ls.models.saving import load_bundle
    from pipeline import figures
    from pipeline.registry import register_checkpoint, versions
    from pipeline.tracking import RunWriter

    shards = make_shards(folder / "shards", side=128)
    recipe = make_recipe(shards)
    store = make_store(folder)
    checkpoint = make_checkpoint(folder / "checkpoint", shards, recipe)
    network, _ = load_bundle(checkpoint)
    sweep = store.start_run(recipe, shards.card, "blobs-sweep", "sweep")
    trials = []
    for number, (stages, temperature) in enumerate([(1, 0.07), (1, 0.5), (2, 0.07), (2, 0.5)]):
        values = {"model.stages": stages, "loss.temperature": temperature}
        trial = recipe.with_values(values)
        run = store.start_run(
            trial, shards.card, f"blobs-{number}-stages-{stages}", "trial", parent_run_id=sweep
        )
        top = 0.5 + 0.1 * stages - 0.1 * temperature
        train_falsely(store, run, folder / f"spool-{number}", trial, shards, network, top, epochs)
        store.end_run(run)
        trials.append(FakeTrial(values, store.run(run).metrics["val/miou"]))
    drawn = figures.sweep_figures(trials, ["model.stages", "loss.temperature"], "val/miou")
    with RunWriter(store.uri, sweep, folder / "spool-sweep") as log:
        for key, picture in drawn.items():
            log.picture(f"sweep/{key}", picture)
    store.end_run(sweep)
    evaluation = {"scores": {"miou": 0.66, "iou": {"field": 0.7, "forest": 0.62}}}
    version = register_checkpoint(
        store,
        run,
        make_checkpoint(folder / "best", shards, trial),
        "d2ls-blobs",
        card=shards.card,
        evaluation=evaluation,
        recipe=trial,
    )
    versions.promote(
        store, "d2ls-blobs", version.version, "mIoU 0.6600 on the test split; there was no champion"
    )
    return store, sweep


def train_falsely(store, run, spool, recipe, shards, network, top, epochs):
    """Reports a made-up training through the real callback."""
    from d2ls.metrics import score
    from d2ls.training.callbacks import EvaluationReport, StepReport
    from pipeline.tracking.callback import TrackingCallback

    rng = np.random.default_rng(int(top * 1000))
    callback = TrackingCallback(store.uri, run, spool, recipe, shards)
    for step in range(1, 10 * epochs + 1):
        loss = 0.4 + 1.6 * np.exp(-step / 12) + rng.normal(0, 0.03)
        terms = {"cross_entropy": loss * 0.7, "dice": loss * 0.3, "total": loss}
        seconds = {"data": 0.02, "forward": 0.2, "backward": 0.3, "optimizer": 0.02, "step": 0.54}
        report = StepReport(
            step, 1 + step // 10, 10, 10 * epochs, terms, 1e-4 * (1 - step / 50), 1.0, 8.0, seconds
        )
        callback.on_step(report)
        if step % 10 == 0:
            right = top * (1 - np.exp(-step / 9))
            confusion = (1000 * ((1 - right) / 4 + right * np.eye(4) + rng.uniform(0, 0.03, (4, 4)))).astype(
                int
            )
            evaluation = EvaluationReport(
                step, step // 10, "val", confusion, score(confusion), terms, True, 0.5
            )
            callback.on_evaluation(evaluation, network)
    callback.close()


@dataclass
class FakeTrial:
    """The attributes of a trial that `sweep_figures` uses."""

    values: dict[str, object]
    score: float

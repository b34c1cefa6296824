"""A tiny shard set, a recipe, a network and a checkpoint for the tests of tracking and registry."""

import hashlib
import io
import json
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from d2ls.labels import ClassTable
from d2ls.shards import CARD_FILE, INDEX_FILE, INDEX_SCHEMA, DatasetCard, ShardFile, ShardSet, SplitCard
from pipeline.config import Recipe, parse_recipe

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
        file = ShardFile(name, len(content), hashlib.sha256(content).hexdigest(), count)
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
        "train": {"epochs": 3, "global_batch": 2},
    }  # fmt: skip
    return parse_recipe(plain).with_values(values)


def make_checkpoint(folder: Path, shards: ShardSet, recipe: Recipe, seed: int = 0) -> Path:
    """Writes the bundle of an untrained network."""
    import torch

    from d2ls.bundle import ModelInfo, save_bundle
    from d2ls.model import build_model

    torch.manual_seed(seed)
    network = build_model(
        backbone=recipe.model.backbone, num_classes=4, stages=recipe.model.stages, embed_dim=32, heads=2
    )
    folder.mkdir(parents=True)
    save_bundle(folder, network.eval(), ModelInfo.from_card(network, shards.card, window=64))
    return folder


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()

"""Tiny real shard sets for tests: tars by webdataset's own writer, an index read back from them, and a card."""

import io
import json
import tarfile
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from d2ls.data import TrainingLoader
from d2ls.labels import ClassTable
from d2ls.shards import CARD_FILE, INDEX_FILE, INDEX_SCHEMA, DatasetCard, ShardFile, ShardSet, SplitCard
from d2ls.shards.png import grey_png

CLASSES = ClassTable.create(
    ["soil", "water", "road", "forest"], [(200, 180, 120), (0, 0, 255), (90, 90, 90), (0, 120, 0)]
)


def picture(number, height, width, channels=3, dtype="uint8"):
    """Returns a textured image that differs from sample to sample, and its labels: blocks of all classes and of 255."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (4, 4, channels)).astype(np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR).reshape(
        height, width, channels
    )
    image = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255)
    blocks = rng.choice([0, 1, 2, 3, 255], (5, 5), p=[0.4, 0.2, 0.2, 0.1, 0.1]).astype(np.uint8)
    mask = cv2.resize(blocks, (width, height), interpolation=cv2.INTER_NEAREST)
    return (image * (1 if dtype == "uint8" else 200)).astype(dtype), mask


def coordinates(height, width):
    """Returns an image with the position of each pixel (first channel: row, second: column), and labels of the rows."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows, columns, np.zeros_like(rows)], axis=2).astype(np.uint8)
    return image, ((rows // 8 + columns // 8) % 4).astype(np.uint8)


def encode(image, suffix, **tif):
    if suffix == "tif":
        return tiff(image, **tif)
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[image.shape[2]]
    pixels = image[:, :, order]
    options = [cv2.IMWRITE_WEBP_QUALITY, 101] if suffix == "webp" else []
    ok, content = cv2.imencode(f".{suffix}", np.ascontiguousarray(pixels), options)
    assert ok
    return content.tobytes()


def tiff(image, **options):
    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.io import MemoryFile

    height, width, channels = image.shape
    options = {
        "tiled": True,
        "blockxsize": 32,
        "blockysize": 16,
        "compress": "zstd",
        "predictor": 2,
        **options,
    }
    options = {"interleave": "pixel", **options}
    with MemoryFile() as memory, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with memory.open(
            driver="GTiff", height=height, width=width, count=channels, dtype=image.dtype.name, **options
        ) as target:
            target.write(image.transpose(2, 0, 1))
        return bytes(memory.read())


def make_shards(
    root: Path,
    counts,
    *,
    split="train",
    size=(48, 64),
    suffix="png",
    channels=3,
    dtype="uint8",
    sample=picture,
    sizes=None,
    tif=None,
    classes=CLASSES,
) -> ShardSet:
    """Writes `counts[i]` samples into shard i of a split, in addition to existing splits; opens the set."""
    from webdataset import TarWriter

    (root / split).mkdir(parents=True)
    rows, shards, number = [], [], 0
    for index, count in enumerate(counts):
        path = f"{split}/{split}-{index:05d}.tar"
        with TarWriter(str(root / path), mtime=0, encoder=False) as writer:
            for _ in range(count):
                height, width = sizes[number] if sizes else size
                extra = (channels, dtype) if sample is picture else ()
                image, mask = sample(number + 1000 * len(split), height, width, *extra)
                key = f"{split}_{number:06d}"
                members = {
                    f"image.{suffix}": encode(image, suffix, **(tif or {})),
                    "mask.png": grey_png(mask) if number % 2 else encode(mask[:, :, None], "png"),
                    "json": json.dumps({"scene": f"scene{index}"}).encode(),
                }
                writer.write({"__key__": key, **members})
                rows.append(_row(key, split, f"scene{index}", path, suffix, members, mask, classes))
                number += 1
        rows[len(rows) - count :] = _located(root / path, rows[len(rows) - count :])
        content = (root / path).read_bytes()
        shards.append(ShardFile(path, len(content), blake3(content).hexdigest(), count))
    return _finish(root, split, rows, tuple(shards), channels, dtype, classes)


def _row(key, split, scene, shard, suffix, members, mask, classes):
    counts = np.bincount(mask.ravel(), minlength=256)[: classes.num_classes]
    return {
        "key": key, "split": split, "scene": scene, "shard": shard, "image_suffix": suffix,
        "image_crc32": zlib.crc32(members[f"image.{suffix}"]), "mask_crc32": zlib.crc32(members["mask.png"]),
        "height": mask.shape[0], "width": mask.shape[1], "class_pixels": counts.tolist(),
    }  # fmt: skip


def _located(path, rows):
    with tarfile.open(path) as archive:
        places = {member.name: (member.offset_data, member.size) for member in archive}
    for row in rows:
        for name, ending in (
            ("image", f"image.{row['image_suffix']}"),
            ("mask", "mask.png"),
            ("meta", "json"),
        ):
            row[f"{name}_offset"], row[f"{name}_length"] = places[f"{row['key']}.{ending}"]
    return rows


def _finish(root, split, rows, shards, channels, dtype, classes):
    splits = {}
    tables = []
    if (root / CARD_FILE).exists():
        before = ShardSet.open(str(root))
        splits, tables = dict(before.card.splits), [before.index]
    pixels = np.sum([row["class_pixels"] for row in rows], axis=0) if rows else np.zeros(classes.num_classes)
    ignored = sum(row["height"] * row["width"] for row in rows) - int(pixels.sum())
    scenes = len({row["scene"] for row in rows})
    splits[split] = SplitCard(len(rows), scenes, tuple(int(n) for n in pixels), ignored, "0" * 64, shards)
    bands = ("red", "green", "blue", "nir", "swir")[:channels]
    card = DatasetCard(
        name="tiny", source="custom", protocol="clean", classes=classes, bands=bands, dtype=dtype,
        max_value=255.0 if dtype == "uint8" else 65535.0, mean=(0.5,) * channels, std=(0.25,) * channels,
        ground_sampling_distance=None, tiling={}, codec={}, scene_check="disjoint", splits=splits, digest="1" * 64,
    )  # fmt: skip
    tables.append(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA))
    buffer = io.BytesIO()
    pq.write_table(pa.concat_tables(tables), buffer)
    (root / INDEX_FILE).write_bytes(buffer.getvalue())
    (root / CARD_FILE).write_text(card.to_json())
    return ShardSet.open(str(root))


def training_batches(shards, *, epoch, start_step=0, **options):
    """The training batches of one epoch of the split `train`."""
    return TrainingLoader(shards, "train", **options).epoch(epoch, start_step)

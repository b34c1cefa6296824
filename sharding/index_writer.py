"""From finished shards to an openable set: index, statistics, digests, card, previews; the card is written last."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from d2ls import storage
from d2ls.errors import DataError, ShardError
from d2ls.labels import ClassTable
from d2ls.shards import CARD_FILE, INDEX_FILE, INDEX_SCHEMA, DatasetCard, ShardSet, SplitCard
from sharding.plan import ShardPlan
from sharding.preview import write_previews
from sharding.scaling import Scale, value_warnings
from sharding.scan import Scan
from sharding.shard_manifest import ShardManifest, finished_manifest
from sharding.spec import ShardSpec
from sharding.validate import LabelCounts, unseen_classes


def unfinish(uri: str) -> None:
    """Takes card and index away, so that a set that is being changed cannot be opened."""
    for name in (CARD_FILE, INDEX_FILE):
        storage.delete(storage.join(uri, name))


def finished_card(plan: ShardPlan, spec: ShardSpec) -> DatasetCard | None:
    """Returns the card of a set that an earlier run finished from the same plan, None where there is work to do."""
    location = storage.join(spec.uri, CARD_FILE)
    if not storage.exists(location):
        return None
    try:
        card = ShardSet.open(spec.uri).card
    except ShardError:
        return None
    same = card.extra.get("plan") == plan.fingerprint and card.name == spec.name
    present = all(
        storage.info(storage.join(spec.uri, shard.path)).size == shard.bytes
        for split in card.splits.values()
        for shard in split.shards
    )
    return card if same and present and card.max_value == plan.scan.max_value else None


def finish(plan: ShardPlan, spec: ShardSpec) -> DatasetCard:
    """Joins the parts of all shards into index and card, draws the previews, deletes shards of former plans.

    Raises:
        ShardError: a shard of the plan is not finished.
    """
    parts = [(task, finished_manifest(task, spec.uri)) for task in plan.tasks]
    open_tasks = [task.path for task, part in parts if part is None]
    if open_tasks:
        raise ShardError(
            f"{spec.uri}: {len(open_tasks)} shard(s) not finished, first {open_tasks[0]}; run it again"
        )
    done = [part for _, part in parts if part is not None]
    card = make_card(plan, spec, done)
    _delete_strangers(plan, spec.uri)
    storage.write_bytes(storage.join(spec.uri, INDEX_FILE), _index_bytes(done))
    storage.write_bytes(storage.join(spec.uri, CARD_FILE), card.to_json().encode())
    write_previews(ShardSet.open(spec.uri))
    return card


def make_card(plan: ShardPlan, spec: ShardSpec, parts: Sequence[ShardManifest]) -> DatasetCard:
    """Makes the card from the parts of all shards."""
    scan = plan.scan
    max_value = scan.max_value
    mean, std = statistics(parts, max_value, scan.scale)
    splits = {
        split: _split_card([part for part in parts if part.rows[0]["split"] == split], plan)
        for split in plan.splits
    }
    strays: dict[str, int] = {}
    for part in parts:
        for code, count in part.strays.items():
            strays[code] = strays.get(code, 0) + count
    extra: dict[str, Any] = {"plan": plan.fingerprint, **scan.facts}
    extra |= {"strays": strays} if spec.strays else {}
    extra |= {"unlabelled": scan.unlabelled} if scan.unlabelled else {}
    options = {
        name: value for name, value in spec.options.items() if isinstance(value, str | int | float | list)
    }
    extra |= {"options": options} if options else {}
    counts = {name: LabelCounts(split.class_pixels, split.ignored_pixels) for name, split in splits.items()}
    unseen = [text for _, text in unseen_classes(scan, counts)]
    warnings = unseen + value_warnings([part.sums for part in parts], scan)
    warnings += [
        f"band {name} has one value only, and training divides by its deviation: leave it out with data.bands"
        for name, spread in zip(scan.bands, std, strict=True)
        if not spread
    ]
    if warnings:
        extra["warnings"] = warnings
    return DatasetCard(
        name=spec.name,
        source=spec.source,
        protocol=spec.protocol,
        classes=scan.classes,
        bands=scan.bands,
        dtype=scan.dtype,
        max_value=max_value,
        mean=mean,
        std=std,
        ground_sampling_distance=scan.ground_sampling_distance,
        tiling={split: asdict(scan.tilings[split]) for split in plan.splits},
        codec=spec.codec.to_json(),
        scene_check=scan.scene_check,
        splits=splits,
        digest=set_digest({name: split.digest for name, split in splits.items()}),
        scale=scan.scale,
        reading=_reading(scan),
        license=scan.license,
        extra=extra,
    )


def statistics(
    parts: Iterable[ShardManifest], max_value: float, scale: Scale | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation of each channel, of pixel / max_value, from integer sums.

    Raises:
        DataError: a channel holds no data at all.
    """
    sums = [part.sums for part in parts if part.sums.count]
    bands = range(len(sums[0].total))
    count = [sum(item.count[band] for item in sums) for band in bands]
    total = [sum(item.total[band] for item in sums) for band in bands]
    squares = [sum(item.squares[band] for item in sums) for band in bands]
    if not all(count):
        raise DataError(
            "no pixel of the training split holds data: no mean, no deviation. Look at nodata values, alpha "
            "channels and masks of the images, and at data.custom.nodata"
        )
    # count*squares - total**2 is exact in integers: no cancellation
    spread = [math.sqrt(count[band] * squares[band] - total[band] ** 2) for band in bands]
    if scale is None:
        mean = tuple(total[band] / count[band] / max_value for band in bands)
        return mean, tuple(spread[band] / count[band] / max_value for band in bands)
    step = [(high - low) / 65535 for low, high in scale]
    mean = tuple(scale[band][0] + total[band] / count[band] * step[band] for band in bands)
    return mean, tuple(spread[band] / count[band] * step[band] for band in bands)


def _reading(scan: Scan) -> dict[str, Any]:
    """What prediction must know to read files as they were read here."""
    reading: dict[str, Any] = {} if scan.reading.nodata is None else {"nodata": scan.reading.nodata}
    return reading | ({"band_order": scan.band_order} if scan.band_order in ("names", "positions") else {})


def split_digest(
    samples: Iterable[str], classes: ClassTable, bands: Sequence[str], dtype: str, tiling: dict[str, Any]
) -> str:
    """BLAKE3 (hex) over label map, channels, tiling and the samples' digests in sorted order; free of names."""
    facts = {"classes": classes.to_json(), "bands": list(bands), "dtype": dtype, "tiling": tiling}
    digest = blake3(json.dumps(facts, sort_keys=True).encode())
    for sample in sorted(samples):
        digest.update(bytes.fromhex(sample))
    return digest.hexdigest()


def set_digest(splits: dict[str, str]) -> str:
    """BLAKE3 (hex) over the digests of the splits."""
    return blake3(json.dumps(splits, sort_keys=True).encode()).hexdigest()


def _split_card(parts: Sequence[ShardManifest], plan: ShardPlan) -> SplitCard:
    classes = plan.scan.classes
    rows = [row for part in parts for row in part.rows]
    tiling = asdict(plan.scan.tilings[rows[0]["split"]])
    counts = [sum(row["class_pixels"][index] for row in rows) for index in range(classes.num_classes)]
    pixels = sum(row["height"] * row["width"] for row in rows)
    return SplitCard(
        samples=len(rows),
        scenes=len({row["scene"] for row in rows}),
        class_pixels=tuple(counts),
        ignored_pixels=pixels - sum(counts),
        digest=split_digest(
            (row["digest"] for row in rows), classes, plan.scan.bands, plan.scan.dtype, tiling
        ),
        shards=tuple(part.shard for part in parts),
    )


def _index_bytes(parts: Sequence[ShardManifest]) -> bytes:
    names = set(INDEX_SCHEMA.names)
    rows = [
        {name: value for name, value in row.items() if name in names} for part in parts for row in part.rows
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def _delete_strangers(plan: ShardPlan, uri: str) -> None:
    """Deletes tars and parts of a former plan: a reader that lists the folder would take them for ours."""
    ours = {task.path for task in plan.tasks} | {task.manifest for task in plan.tasks}
    for split in plan.splits:
        known = (split, f"{split}-", ".tar")
        for folder, prefix, suffix in (known, ("parts", f"{split}-", ".json")):
            for entry in storage.list_files(storage.join(uri, folder)):
                name = entry.path.rsplit("/", 1)[-1]
                number = name.removeprefix(prefix).removesuffix(suffix)
                is_shard = name == f"{prefix}{number}{suffix}" and len(number) == 5 and number.isdigit()
                if is_shard and f"{folder}/{name}" not in ours:
                    storage.delete(storage.join(uri, folder, name))

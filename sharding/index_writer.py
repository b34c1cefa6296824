"""Last step: the index is the concatenation of the manifests' rows; then card and previews. The card comes last."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from d2ls import storage
from d2ls.errors import ShardError
from d2ls.shards import CARD_FILE, INDEX_FILE, INDEX_SCHEMA, DatasetCard, ShardSet, SplitCard
from sharding.digests import set_digest, split_digest
from sharding.pixel_statistics import mean_and_std
from sharding.plan import ShardPlan
from sharding.preview import write_previews
from sharding.scaling import range_warnings
from sharding.scan import Scan
from sharding.shard_manifest import ShardManifest, finished_manifest
from sharding.spec import ShardSpec
from sharding.validate import LabelCounts, unseen_classes


def delete_index(uri: str) -> None:
    """Deletes card and index, so that a set that is being changed cannot be opened."""
    for name in (CARD_FILE, INDEX_FILE):
        storage.delete(storage.join(uri, name))


def finished_card(plan: ShardPlan, spec: ShardSpec) -> DatasetCard | None:
    """Returns the card of a set that an earlier run finished from the same plan, None if there is work to do."""
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


def write_index(plan: ShardPlan, spec: ShardSpec) -> DatasetCard:
    """Joins the manifests of all shards to index and card, deletes shards of earlier plans, draws the previews.

    Raises:
        ShardError: a shard of the plan is not finished.
    """
    manifests: dict[str, list[ShardManifest]] = {split: [] for split in plan.splits}
    unfinished = []
    for task in plan.tasks:
        if (manifest := finished_manifest(task, spec.uri)) is not None:
            manifests[task.split].append(manifest)
        else:
            unfinished.append(task.path)
    if unfinished:
        raise ShardError(
            f"{spec.uri}: {len(unfinished)} shard(s) not finished, first {unfinished[0]}; run it again"
        )
    card = make_card(plan, spec, manifests)
    _delete_other_plans(plan, spec.uri)
    index = pa.concat_tables(manifest.rows for split in manifests.values() for manifest in split)
    sink = pa.BufferOutputStream()
    pq.write_table(index.select(INDEX_SCHEMA.names).combine_chunks(), sink, compression="zstd")
    storage.write_bytes(storage.join(spec.uri, INDEX_FILE), bytes(sink.getvalue().to_pybytes()))
    storage.write_bytes(storage.join(spec.uri, CARD_FILE), card.to_json().encode())
    write_previews(ShardSet.open(spec.uri))
    return card


def make_card(plan: ShardPlan, spec: ShardSpec, manifests: dict[str, list[ShardManifest]]) -> DatasetCard:
    """Makes the card from the manifests of all shards, by split."""
    scan = plan.scan
    everything = [manifest for split in manifests.values() for manifest in split]
    mean, std = mean_and_std([manifest.sums for manifest in everything], scan.max_value, scan.scale)
    splits = {split: _split_card(scan, split, manifests[split]) for split in plan.splits}
    warnings = _warnings(scan, splits, everything, std)
    unexpected: Counter[str] = Counter()
    for manifest in everything:
        unexpected.update(manifest.unexpected_labels)
    options = {
        name: value for name, value in spec.options.items() if isinstance(value, str | int | float | list)
    }
    extra: dict[str, Any] = {"plan": plan.fingerprint, **scan.extra}
    extra |= {"unexpected_labels": dict(unexpected)} if spec.treat_as_ignored else {}
    extra |= {"unlabelled": scan.unlabelled} if scan.unlabelled else {}
    extra |= {"options": options} if options else {}
    extra |= {"warnings": warnings} if warnings else {}
    return DatasetCard(
        name=spec.name,
        source=spec.source,
        protocol=spec.protocol,
        classes=scan.classes,
        bands=scan.bands,
        dtype=scan.dtype,
        max_value=scan.max_value,
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


def _split_card(scan: Scan, split: str, manifests: Sequence[ShardManifest]) -> SplitCard:
    rows = pa.concat_tables(manifest.rows for manifest in manifests)
    counts = pc.list_flatten(rows["class_pixels"]).to_numpy().reshape(rows.num_rows, -1).sum(axis=0)
    pixels = int((rows["height"].to_numpy().astype(np.int64) * rows["width"].to_numpy()).sum())
    tiling = asdict(scan.tilings[split])
    return SplitCard(
        samples=rows.num_rows,
        scenes=pc.count_distinct(rows["scene"]).as_py(),
        class_pixels=tuple(counts.tolist()),
        ignored_pixels=pixels - int(counts.sum()),
        digest=split_digest(rows["digest"].to_pylist(), scan.classes, scan.bands, scan.dtype, tiling),
        shards=tuple(manifest.shard for manifest in manifests),
    )


def _warnings(
    scan: Scan, splits: dict[str, SplitCard], manifests: Sequence[ShardManifest], std: tuple[float, ...]
) -> list[str]:
    counts = {name: LabelCounts(split.class_pixels, split.ignored_pixels) for name, split in splits.items()}
    sums = [manifest.sums for manifest in manifests]
    return [
        *(text for _, text in unseen_classes(scan, counts)),
        *range_warnings(sums, scan.bands, scan.dtype, scan.max_value, scan.scale),
        *(
            f"band {name} has one value only, and training divides by its deviation: leave it out with data.bands"
            for name, deviation in zip(scan.bands, std, strict=True)
            if not deviation
        ),
    ]


def _reading(scan: Scan) -> dict[str, Any]:
    """Returns the settings that prediction needs to read files as they were read here."""
    reading: dict[str, Any] = {} if scan.reading.nodata is None else {"nodata": scan.reading.nodata}
    return reading | ({"band_order": scan.band_order} if scan.band_order in ("names", "positions") else {})


def _delete_other_plans(plan: ShardPlan, uri: str) -> None:
    """Deletes tars and manifests of other plans: a reader that lists the folder would take them for this set's."""
    ours = {task.path for task in plan.tasks} | {task.manifest for task in plan.tasks}
    for split in plan.splits:
        for folder, suffix in ((split, ".tar"), ("manifests", ".parquet")):
            for entry in storage.list_files(storage.join(uri, folder)):
                name = entry.path.rsplit("/", 1)[-1]
                number = name.removeprefix(f"{split}-").removesuffix(suffix)
                is_shard = name == f"{split}-{number}{suffix}" and len(number) == 5 and number.isdigit()
                if is_shard and f"{folder}/{name}" not in ours:
                    storage.delete(storage.join(uri, folder, name))

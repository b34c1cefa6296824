"""`--verify`: read a finished shard set back and compare it with its card and index."""

import io
import tarfile
from collections import defaultdict
from typing import Any

from blake3 import blake3
from pyarrow import fs

from d2ls import storage
from d2ls.errors import D2LSError, ShardError
from d2ls.shards import INDEX_SCHEMA, DatasetCard, ShardFile, ShardSet, SplitCard
from d2ls.shards.codecs import decode_image, decode_mask
from sharding.codecs import crc32
from sharding.digests import sample_digest, set_digest, split_digest
from sharding.pixel_statistics import histogram
from sharding.scan import listed

Row = dict[str, Any]


def verify(uri: str) -> DatasetCard:
    """Reads every byte of a shard set back.

    Checks:

    - tars: named in the card, size, BLAKE3;
    - samples: names, offsets and CRC of their members, sizes of image and labels, class pixels;
    - the set: counts, digests, no scene in two splits.

    Returns:
        The card.

    Raises:
        ShardError: lists all differences.
    """
    shards = ShardSet.open(uri)
    problems: list[str] = []
    for name in shards.splits:
        problems += _verify_split(shards, name)
    problems += _verify_scenes(shards)
    digests = {name: split.digest for name, split in shards.card.splits.items()}
    if set_digest(digests) != shards.card.digest:
        problems.append("card.json: the digest of the set is not that of its splits")
    rows, counted = shards.index.num_rows, sum(split.samples for split in shards.card.splits.values())
    if rows != counted:
        problems.append(f"index.parquet has {rows} samples, the card counts {counted}")
    if problems:
        raise ShardError(
            f"{uri}: {len(problems)} difference(s) between shards, index and card:\n{listed(problems)}\n"
            "Delete the shards named and run `python -m pipeline.shard RECIPE` again: it makes the missing ones."
        )
    return shards.card


def _verify_split(shards: ShardSet, name: str) -> list[str]:
    card = shards.card.splits[name]
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in shards.rows(name).select(INDEX_SCHEMA.names).to_pylist():
        rows[row["shard"]].append(row)
    problems = _unknown_tars(shards, name, card)
    digests: list[str] = []
    for shard in card.shards:
        problems += _verify_shard(shards, shard, rows.pop(shard.path, []), digests)
    problems += [f"{path}: in the index, not in the card" for path in rows]
    whole, tiling = shards.card, shards.card.tiling[name]
    if not problems and split_digest(digests, whole.classes, whole.bands, whole.dtype, tiling) != card.digest:
        problems.append(f"split {name}: the digest of the content is not the one in the card")
    table = shards.rows(name).to_pylist()
    counts = [sum(row["class_pixels"][k] for row in table) for k in range(whole.classes.num_classes)]
    if tuple(counts) != card.class_pixels or len(table) != card.samples:
        problems.append(f"split {name}: samples or class pixels of the index differ from the card")
    return problems


def _unknown_tars(shards: ShardSet, split: str, card: SplitCard) -> list[str]:
    known = {shard.path.rsplit("/", 1)[-1] for shard in card.shards}
    entries = storage.list_files(storage.join(shards.uri, split))
    names = [entry.path.rsplit("/", 1)[-1] for entry in entries if entry.type == fs.FileType.File]
    return [
        f"{split}/{name}: not in the card" for name in names if name not in known and name.endswith(".tar")
    ]


def _verify_shard(shards: ShardSet, shard: ShardFile, rows: list[Row], digests: list[str]) -> list[str]:
    try:
        content = storage.read_bytes(shards.shard_uri(shard.path))
    except D2LSError as error:
        return [str(error)]
    if len(content) != shard.bytes or blake3(content).hexdigest() != shard.blake3:
        return [
            f"{shard.path}: size or BLAKE3 is not what the card says ({len(content)} of {shard.bytes} bytes)"
        ]
    if len(rows) != shard.samples:
        return [f"{shard.path}: {len(rows)} samples in the index, {shard.samples} in the card"]
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        members = {member.name: (member.offset_data, member.size) for member in tar}
    problems = []
    for row in rows:
        try:
            digests.append(_verify_sample(content, members, row, shards.card))
        except ShardError as error:
            problems.append(f"{shard.path}, sample {row['key']}: {error}")
    return problems


def _verify_sample(content: bytes, members: dict[str, tuple[int, int]], row: Row, card: DatasetCard) -> str:
    """Returns the digest of a sample; raises ShardError if something differs."""
    names = {"image": f"{row['key']}.image.{row['image_suffix']}", "mask": f"{row['key']}.mask.png"}
    names["meta"] = f"{row['key']}.json"
    parts = {}
    for part, name in names.items():
        place = (row[f"{part}_offset"], row[f"{part}_length"])
        if members.get(name) != place:
            raise ShardError(f"member {name} is at {members.get(name)}, the index says {place}")
        parts[part] = content[place[0] : place[0] + place[1]]
    for part in ("image", "mask"):
        if crc32(parts[part]) != row[f"{part}_crc32"]:
            raise ShardError(f"CRC of the {part} differs")
    size = (row["height"], row["width"])
    expected = (*size, len(card.bands), card.dtype)
    image = decode_image(parts["image"], row["image_suffix"], expected=expected)
    ids = decode_mask(parts["mask"], size)
    counts = histogram(ids)
    if counts[: card.classes.num_classes].tolist() != row["class_pixels"]:
        raise ShardError("class pixels differ from the index")
    if int(counts[card.classes.num_classes : 255].sum()):
        raise ShardError(f"labels beyond the {card.classes.num_classes} classes")
    return sample_digest(image, ids)


def _verify_scenes(shards: ShardSet) -> list[str]:
    if shards.card.scene_check != "disjoint":
        return []
    splits: dict[str, set[str]] = defaultdict(set)
    for row in shards.index.select(["scene", "split"]).to_pylist():
        splits[row["scene"]].add(row["split"])
    return [f"scene {scene!r} is in {sorted(names)}" for scene, names in splits.items() if len(names) > 1]

"""Fourth step: write one shard and its manifest. A shard appears under its name only when it is complete."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from d2ls import storage
from d2ls.errors import DataError
from d2ls.labels import IGNORE, count_code
from d2ls.shards import ShardFile
from d2ls.shards.codecs import decode_image
from d2ls.shards.png import grey_png
from d2ls.window import Window
from sharding.codecs import crc32
from sharding.digests import sample_digest
from sharding.headers import ScannedScene
from sharding.pixel_statistics import PixelSums, histogram
from sharding.plan import Recording, ShardTask
from sharding.raster import Raster, RasterInfo, WholeRaster
from sharding.shard_io import HashingStream, tar_writer, target_file
from sharding.shard_manifest import SCHEMA, ShardManifest
from sharding.tiling import Tile, pad_image, place_labels

TAR_BLOCK = 512


def write_shard(task: ShardTask, uri: str) -> ShardManifest:
    """Writes one shard, then its manifest.

    The same task gives the same bytes on every machine.

    Raises:
        DataError, LabelError: a raw file is damaged or holds an unknown label; no file is left behind.
        StorageError: the target cannot be written.
    """
    rows: list[dict[str, Any]] = []
    sums = PixelSums()
    unexpected: Counter[str] = Counter()
    with target_file(uri, task.path) as stream:
        tar = HashingStream(stream)
        with tar_writer(tar) as writer:
            rows.extend(_append(writer, sample, task) for sample in _samples(task, sums, unexpected))
        stream.flush()
        shard = ShardFile(task.path, tar.size, tar.digest.hexdigest(), len(rows))
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    manifest = ShardManifest(task.fingerprint, shard, table, sums, dict(unexpected))
    storage.write_bytes(storage.join(uri, task.manifest), manifest.to_bytes())
    return manifest


@dataclass(frozen=True)
class _Sample:
    """An encoded sample."""

    key: str
    scene: str
    image: bytes
    mask: bytes
    meta: bytes
    size: tuple[int, int]
    class_pixels: list[int]
    digest: str


def _samples(task: ShardTask, sums: PixelSums, unexpected: Counter[str]) -> Iterator[_Sample]:
    """Yields the samples of a shard; adds their pixels to `sums` and the labels it counts to `unexpected`."""
    recording = task.recording
    for cut in task.cuts:
        with cut.item.opened(recording.reading, recording.codes) as (image, labels):
            _require_unchanged(cut.item, image.info, labels.size)
            for key, tile in cut.tiles:
                pixels, valid = image.read(tile.inside, cut.item.bands)
                if recording.statistics:
                    sums.add(pixels, valid, recording.scale)
                if recording.counted:
                    raw = labels.raw(tile.labelled)
                    unexpected += Counter({str(code): count_code(raw, code) for code in recording.counted})
                ids = labels.read(tile.inside)
                if valid is not None:
                    ids = np.where(valid, ids, np.uint8(IGNORE))
                yield _sample(key, tile, cut.item, image, pixels, ids, recording)


def _require_unchanged(item: ScannedScene, info: RasterInfo, labels_size: tuple[int, int]) -> None:
    """Refuses files that were replaced after the scan: GDAL would stretch a file of another size.

    Raises:
        DataError: names the file.
    """
    same_image = replace(info, sidecars=()) == replace(item.info, sidecars=())
    same_labels = labels_size == (item.info.height, item.info.width)
    for file, same in ((item.scene.image, same_image), (item.scene.mask, same_labels)):
        if not same:
            raise DataError(
                f"{file}: changed while the data set was sharded. Start again when it is complete"
            )


def _sample(
    key: str,
    tile: Tile,
    item: ScannedScene,
    image: Raster,
    pixels: npt.NDArray[Any],
    ids: npt.NDArray[np.uint8],
    recording: Recording,
) -> _Sample:
    """Encodes the pixels and class ids inside a tile."""
    scene, info = item.scene, item.info
    whole = tile.window == tile.inside == Window(0, 0, info.height, info.width)
    whole &= item.bands == tuple(range(info.bands))
    content, stored = _encode(pad_image(pixels, tile, recording.padding), image, recording, whole)
    ids = place_labels(ids, tile)
    digest = sample_digest(stored, ids)
    counts = histogram(ids)[: recording.num_classes].tolist()
    meta = _meta(key, tile, item, digest)
    size = (ids.shape[0], ids.shape[1])
    return _Sample(key, scene.group or scene.id, content, grey_png(ids), meta, size, counts, digest)


def _encode(
    pixels: npt.NDArray[Any], image: Raster, recording: Recording, whole: bool
) -> tuple[bytes, npt.NDArray[Any]]:
    """Returns the encoded image and the pixels that a reader of the shard gets."""
    codec = recording.codec
    if whole and isinstance(image, WholeRaster) and image.plain_as(codec.name):
        return image.encoded, pixels
    content = codec.encode(pixels)
    return content, pixels if codec.lossless else decode_image(content, codec.name)


def _meta(key: str, tile: Tile, item: ScannedScene, digest: str) -> bytes:
    """Returns the JSON member: where the sample comes from, in pixels and, if known, on the ground."""
    scene, info, window = item.scene, item.info, tile.window
    values: dict[str, Any] = {
        "key": key,
        "image": scene.id,
        "scene": scene.group or scene.id,
        "split": scene.split,
        "scene_size": [info.height, info.width],
        "window": [window.row, window.column, window.height, window.width],
        "inside": [tile.inside.height, tile.inside.width],
        "digest": digest,
    }
    if scene.tags:
        values["tags"] = dict(scene.tags)
    if info.crs:
        values["crs"] = info.crs
    if info.transform:
        a, b, c, d, e, f = info.transform
        x = c + a * window.column + b * window.row
        y = f + d * window.column + e * window.row
        values["transform"] = [a, b, x, d, e, y]
    if info.gcps:
        values["gcps"] = [[r - window.row, c - window.column, *place] for r, c, *place in info.gcps]
        values["gcps_crs"] = info.gcps_crs
    return json.dumps(values, sort_keys=True, ensure_ascii=False).encode()


def _append(writer: Any, sample: _Sample, task: ShardTask) -> dict[str, Any]:
    """Appends a sample to the tar and returns its index row."""
    suffix = task.recording.codec.name
    start = writer.tarstream.offset
    members = {f"image.{suffix}": sample.image, "json": sample.meta, "mask.png": sample.mask}
    writer.write({"__key__": sample.key, **members})
    offsets = {}
    for name in sorted(members):
        offsets[name] = start + TAR_BLOCK
        start += TAR_BLOCK + -(-len(members[name]) // TAR_BLOCK) * TAR_BLOCK
    assert start == writer.tarstream.offset, "the tar has longer headers than planned"
    return {
        "key": sample.key,
        "split": task.split,
        "scene": sample.scene,
        "shard": task.path,
        "image_suffix": suffix,
        "image_offset": offsets[f"image.{suffix}"],
        "image_length": len(sample.image),
        "image_crc32": crc32(sample.image),
        "mask_offset": offsets["mask.png"],
        "mask_length": len(sample.mask),
        "mask_crc32": crc32(sample.mask),
        "meta_offset": offsets["json"],
        "meta_length": len(sample.meta),
        "height": sample.size[0],
        "width": sample.size[1],
        "class_pixels": [int(count) for count in sample.class_pixels],
        "digest": sample.digest,
    }

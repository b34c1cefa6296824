"""Fourth step: write one shard and its manifest. A shard appears under its name only when it is complete."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
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
from d2ls.window import Window
from sharding.codecs import crc32, encode_mask
from sharding.digests import sample_digest
from sharding.pixel_statistics import PixelSums, histogram
from sharding.plan import Cut, Recording, ShardTask
from sharding.raster import Raster, WholeRaster, open_raster
from sharding.raster.label_source import LabelSource, open_labels
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
    for cut in task.cuts:
        assert cut.scene.mask is not None
        reading = task.recording.reading
        with ExitStack() as stack:
            image = stack.enter_context(open_raster(cut.scene.image, reading))
            source = open_labels(
                cut.scene.mask, image, task.recording.codes, resampled=cut.resampled, area=cut.scene.area
            )
            ids = stack.enter_context(source)
            _require_unchanged(cut, image, ids)
            labels = _Labels(ids, task.recording, unexpected)
            for key, tile in cut.tiles:
                yield _sample(key, tile, cut, image, labels, task.recording, sums)


def _require_unchanged(cut: Cut, image: Raster, labels: LabelSource) -> None:
    """Refuses files that were replaced after the scan: GDAL would stretch a file of another size.

    Raises:
        DataError: names the file.
    """
    for file, same in (
        (cut.scene.image, replace(image.info, sidecars=()) == replace(cut.info, sidecars=())),
        (cut.scene.mask, labels.size == (cut.info.height, cut.info.width)),
    ):
        if not same:
            raise DataError(
                f"{file}: changed while the data set was sharded. Start again when it is complete"
            )


def _sample(
    key: str,
    tile: Tile,
    cut: Cut,
    image: Raster,
    labels: "_Labels",
    recording: Recording,
    sums: PixelSums,
) -> _Sample:
    pixels, valid = image.read(tile.inside, cut.bands)
    if recording.statistics:
        sums.add(pixels, valid, recording.scale)
    whole = tile.window == tile.inside == Window(0, 0, cut.info.height, cut.info.width)
    padded = pad_image(pixels, tile, "mirror" if recording.padding == "mirror" else "zero")
    whole &= cut.bands == tuple(range(cut.info.bands))
    content, stored = _encode(padded, image, recording, whole)
    ids = labels.read(tile)
    if valid is not None:
        ids = np.where(valid, ids, np.uint8(IGNORE))
    ids = place_labels(ids, tile)
    digest = sample_digest(stored, ids)
    counts = histogram(ids)[: recording.num_classes].tolist()
    meta = _meta(key, tile, cut, digest)
    group = cut.scene.group or cut.scene.id
    return _Sample(key, group, content, encode_mask(ids), meta, (ids.shape[0], ids.shape[1]), counts, digest)


def _encode(
    pixels: npt.NDArray[Any], image: Raster, recording: Recording, whole: bool
) -> tuple[bytes, npt.NDArray[Any]]:
    """Returns the encoded image and the pixels that a reader of the shard gets."""
    codec = recording.codec
    if whole and isinstance(image, WholeRaster) and image.plain_as(codec.name):
        return image.encoded, pixels
    content = codec.encode(pixels)
    return content, pixels if codec.lossless else decode_image(content, codec.name)


class _Labels:
    """Reads the class ids of the tiles of a scene, and counts the codes of `Recording.counted`."""

    def __init__(self, source: LabelSource, recording: Recording, unexpected: Counter[str]) -> None:
        self._ids = source
        self._counted, self._unexpected = recording.counted, unexpected

    def read(self, tile: Tile) -> npt.NDArray[np.uint8]:
        """Reads the class ids inside a tile (h w)."""
        if self._counted:
            raw = self._ids.raw(tile.labelled)
            for code in self._counted:
                if count := count_code(raw, code):
                    self._unexpected[str(code)] += count
        return self._ids.read(tile.inside)


def _meta(key: str, tile: Tile, cut: Cut, digest: str) -> bytes:
    """Returns the JSON member: where the sample comes from, in pixels and, if known, on the ground."""
    info, window = cut.info, tile.window
    values: dict[str, Any] = {
        "key": key,
        "image": cut.scene.id,
        "scene": cut.scene.group or cut.scene.id,
        "split": cut.scene.split,
        "scene_size": [info.height, info.width],
        "window": [window.row, window.column, window.height, window.width],
        "inside": [tile.inside.height, tile.inside.width],
        "digest": digest,
    }
    if cut.scene.tags:
        values["tags"] = dict(cut.scene.tags)
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

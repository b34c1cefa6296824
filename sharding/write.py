"""Writing one shard: read, cut, encode, append to a tar, and say so in a part file. Never a half one in place."""

import hashlib
import json
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import numpy.typing as npt
import psutil
from pyarrow import fs

from d2ls import storage
from d2ls.errors import StorageError
from d2ls.shards import ShardFile
from sharding.codecs import crc32, decode_image, encode_mask
from sharding.plan import Cut, Recording, ShardTask
from sharding.raster import Pixels, Raster, WholeRaster, open_raster
from sharding.tiling import Tile, Window, pad_image, place_labels

TAR_BLOCK = 512
COPY_BYTES = 2**20
LEFTOVER_SECONDS = 86_400


@dataclass
class PixelSums:
    """Sums over the unpadded pixels of each channel; integers, so the order of adding does not matter."""

    count: int = 0
    total: list[int] = field(default_factory=list)
    squares: list[int] = field(default_factory=list)

    def add(self, image: Pixels) -> None:
        """Adds the pixels of an image (H W C)."""
        bands = image.shape[2]
        self.total = self.total or [0] * bands
        self.squares = self.squares or [0] * bands
        self.count += image.shape[0] * image.shape[1]
        for band in range(bands):
            counts = histogram(image, band)
            values = np.arange(len(counts), dtype=np.uint64)
            self.total[band] += int((counts * values).sum())
            self.squares[band] += int((counts * values * values).sum())


@dataclass(frozen=True)
class ShardPart:
    """What a finished shard holds; its presence says that the shard is finished.

    Attributes:
        fingerprint: of the task.
        shard: the tar.
        rows: index rows (columns of `INDEX_SCHEMA`) with a `digest` more.
        sums: of the pixels, empty where not wanted.
        strays: raw code in words to number of pixels.
    """

    fingerprint: str
    shard: ShardFile
    rows: list[dict[str, Any]]
    sums: PixelSums
    strays: dict[str, int]

    def to_json(self) -> str:
        """Returns the part as JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ShardPart":
        """Inverse of `to_json`; raises ValueError, KeyError or TypeError for another text."""
        values = json.loads(text)
        values["shard"] = ShardFile(**values["shard"])
        values["sums"] = PixelSums(**values["sums"])
        return cls(**values)


def finished_part(task: ShardTask, uri: str) -> ShardPart | None:
    """Returns the part of a shard that an earlier run finished, if it is the same task and the tar is there."""
    location = storage.join(uri, task.part)
    if not storage.exists(location):
        return None
    try:
        part = ShardPart.from_json(storage.read_bytes(location).decode())
    except (ValueError, KeyError, TypeError):
        return None
    size = storage.info(storage.join(uri, task.path)).size
    return part if part.fingerprint == task.fingerprint and size == part.shard.bytes else None


def write_shard(task: ShardTask, uri: str) -> ShardPart:
    """Writes one shard and its part file, the part last.

    The same task gives the same bytes on every machine.

    Raises:
        DataError, LabelError: a raw file is damaged or holds an unknown label; nothing is left in place.
        StorageError: the target cannot be written.
    """
    rows: list[dict[str, Any]] = []
    sums = PixelSums()
    strays: dict[str, int] = {}
    with _target(uri, task.path) as stream:
        tar = _HashingStream(stream)
        with _tar_writer(tar) as writer:
            rows.extend(_append(writer, sample, task) for sample in _samples(task, sums, strays))
        stream.flush()
        shard = ShardFile(task.path, tar.size, tar.digest.hexdigest(), len(rows))
    part = ShardPart(task.fingerprint, shard, rows, sums, strays)
    storage.write_bytes(storage.join(uri, task.part), part.to_json().encode())
    return part


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


def _samples(task: ShardTask, sums: PixelSums, strays: dict[str, int]) -> Iterator[_Sample]:
    for cut in task.cuts:
        assert cut.scene.mask is not None
        with open_raster(cut.scene.image) as image, open_raster(cut.scene.mask) as mask:
            labels = _Labels(mask, task.recording, strays)
            for key, tile in cut.tiles:
                yield _sample(key, tile, cut, image, labels, task.recording, sums)


def _sample(
    key: str,
    tile: Tile,
    cut: Cut,
    image: Raster,
    labels: "_Labels",
    recording: Recording,
    sums: PixelSums,
) -> _Sample:
    pixels: npt.NDArray[Any] = image.pixels(tile.inside)
    if not recording.all_bands:
        pixels = np.ascontiguousarray(pixels[..., list(recording.band_indices)])
    if recording.statistics:
        sums.add(pixels)
    whole = tile.window == tile.inside == Window(0, 0, cut.info.height, cut.info.width)
    padded = pad_image(pixels, tile, "mirror" if recording.padding == "mirror" else "zero")
    content, stored = _encode(padded, image, recording, whole)
    ids = place_labels(labels.read(tile), tile)
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
    if whole and recording.all_bands and isinstance(image, WholeRaster) and image.plain_as(codec.name):
        return image.encoded, pixels
    content = codec.encode(pixels)
    return content, pixels if codec.lossless else decode_image(content, codec.name)


class _Labels:
    """Class ids of a label image, whole or by window as its format asks for."""

    def __init__(self, mask: Raster, recording: Recording, strays: dict[str, int]) -> None:
        self._mask = mask
        self._recording = recording
        self._strays = strays
        self._whole: npt.NDArray[np.uint8] | None = None

    def read(self, tile: Tile) -> npt.NDArray[np.uint8]:
        """Reads the class ids inside a tile (h w)."""
        area = tile.inside
        colors = not self._recording.codes.ids
        if self._recording.strays:
            self._count_strays(self._mask.labels(tile.labelled, colors=colors))
        if not isinstance(self._mask, WholeRaster):
            raw = self._mask.labels(area, colors=colors)
            return self._recording.codes.encode(
                raw, where=str(self._mask.ref), origin=(area.row, area.column)
            )
        if self._whole is None:
            raw = self._mask.labels(None, colors=colors)
            self._whole = self._recording.codes.encode(raw, where=str(self._mask.ref))
        return self._whole[area.row : area.row + area.height, area.column : area.column + area.width]

    def _count_strays(self, raw: Pixels) -> None:
        for stray in self._recording.strays:
            hits = (raw == np.array(stray)).all(axis=-1) if raw.ndim == 3 else raw == stray
            if count := int(hits.sum()):
                self._strays[str(stray)] = self._strays.get(str(stray), 0) + count


def histogram(values: npt.NDArray[Any], band: int = 0) -> npt.NDArray[np.uint64]:
    """Counts of each value of unsigned integers, H W or one band of H W C: 256 for uint8, 65536 for uint16."""
    size = 256 if values.dtype == np.uint8 else 65536
    bands = values.shape[2] if values.ndim == 3 else 1
    if values.shape[0] * values.shape[1] < 2**24 and bands <= 4:  # float32 counts are exact up to here
        counts = cv2.calcHist([np.ascontiguousarray(values)], [band], None, [size], [0, size])
        return np.asarray(counts.reshape(-1), np.uint64)
    flat = values.reshape(-1, bands)[:, band]
    return np.bincount(flat, minlength=size).astype(np.uint64)


def sample_digest(image: npt.NDArray[Any], ids: npt.NDArray[np.uint8]) -> str:
    """SHA-256 (hex) over the decoded pixels of a sample and its class ids."""
    digest = hashlib.sha256(f"{image.shape} {image.dtype} {ids.shape}\n".encode())
    little = image if image.dtype == np.uint8 else image.astype("<u2")
    digest.update(np.ascontiguousarray(little).data)
    digest.update(np.ascontiguousarray(ids).data)
    return digest.hexdigest()


def _meta(key: str, tile: Tile, cut: Cut, digest: str) -> bytes:
    """The JSON member: where the sample comes from, in pixels and, where known, on the ground."""
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


class _HashingStream:
    """Passes bytes on, counting and hashing them."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        self.size += len(content)
        return self._stream.write(content)


def _tar_writer(stream: _HashingStream) -> Any:
    """WebDataset's own writer, set up so that nothing of time or user gets into the tar."""
    from webdataset.writer import TarWriter  # brings torch: not at import

    writer = TarWriter(stream, encoder=False, mtime=0, user="d2ls", group="d2ls", mode=0o644)
    writer.tarstream.copybufsize = writer.tarstream.fileobj.bufsize = (
        COPY_BYTES  # 10 kB steps cost as much as hashing
    )
    return writer


@contextmanager
def _target(uri: str, path: str) -> Iterator[BinaryIO]:
    """Opens a temporary file that becomes `uri`/`path` when the block ends well, and vanishes when not."""
    location = storage.join(uri, path)
    local = storage.is_local(uri)
    folder = storage.local_path(location).parent if local else Path(tempfile.gettempdir())
    storage.make_folder(str(folder))
    handle, name = tempfile.mkstemp(
        dir=folder, prefix=f".{Path(path).name}.{socket.gethostname()}-{os.getpid()}.", suffix=".tmp"
    )
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        if local:
            partial.chmod(0o644)
            partial.replace(storage.local_path(location))
        else:
            storage.upload(partial, location)
    except OSError as error:
        raise StorageError(f"{location}: cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def sweep_leftovers(uri: str) -> None:
    """Deletes temporary files of killed runs from a local target; those of a run at work stay."""
    if storage.is_local(uri):
        for entry in storage.list_files(uri, recursive=True):
            if entry.type == fs.FileType.File and _is_leftover(Path(entry.path)):
                Path(entry.path).unlink(missing_ok=True)


def _is_leftover(path: Path) -> bool:
    """Says whether a file is a temporary one whose writer is gone: dead on this host, or silent for a day."""
    if not (path.name.startswith(".") and path.name.endswith(".tmp")):
        return False
    match = re.search(rf"\.{re.escape(socket.gethostname())}-(\d+)\.", path.name)
    if match:
        return not psutil.pid_exists(int(match[1]))
    return time.time() - path.stat().st_mtime > LEFTOVER_SECONDS

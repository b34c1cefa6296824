"""Third step: which tile goes into which shard, a pure function of scenes, tiling, codec, target size and seed."""

import hashlib
import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import shapely
from affine import Affine

from d2ls.errors import DataError
from d2ls.labels import Color, LabelCodes
from d2ls.window import Window
from sharding.codecs import Codec
from sharding.headers import ScannedScene
from sharding.pixel_statistics import Scale
from sharding.raster import Reading
from sharding.raster.polygon_grid import to_pixels
from sharding.scan import Scan
from sharding.sources.base import Scene
from sharding.spec import ShardSpec
from sharding.tiling import Padding, Tile, Tiling, tiles

FORMAT = 3
"""Version of the writer, part of every fingerprint. It changes when the same plan gives other bytes or another
manifest."""

MIN_SHARDS, MIN_SAMPLES = 4, 8
"""Smallest number of shards of a split, and of samples in each of them, so that workers can share a small split."""


@dataclass(frozen=True)
class Cut:
    """The tiles of one scene that go into one shard, each with its sample key."""

    item: ScannedScene
    tiles: tuple[tuple[str, Tile], ...]


@dataclass(frozen=True)
class Recording:
    """Settings that all shards of a split share.

    Attributes:
        codes: raw label codes to class ids.
        num_classes: K.
        counted: raw label codes to count, see `ShardSpec.treat_as_ignored`.
        reading: what is known about the images beyond their headers.
        scale: of float images, a pair per channel.
        codec: image codec.
        padding: see `Tiling.padding`.
        statistics: whether pixels are summed up.
    """

    codes: LabelCodes
    num_classes: int
    counted: tuple[int | Color, ...]
    reading: Reading
    scale: Scale | None
    codec: Codec
    padding: Padding
    statistics: bool


@dataclass(frozen=True)
class ShardTask:
    """One tar to write: the unit of work, of retry and of "done".

    Attributes:
        split: its split.
        path: the tar below the root.
        cuts: its tiles, in order.
        recording: settings.
        fingerprint: SHA-256 over all of this and the state of the raw files, but not their paths.
    """

    split: str
    path: str
    cuts: tuple[Cut, ...]
    recording: Recording
    fingerprint: str

    @property
    def samples(self) -> int:
        """Number of samples."""
        return sum(len(cut.tiles) for cut in self.cuts)

    @property
    def manifest(self) -> str:
        """Path of the manifest below the root. It exists when the shard is finished."""
        return f"manifests/{self.path.rsplit('/', 1)[1].removesuffix('.tar')}.parquet"


@dataclass(frozen=True)
class ShardPlan:
    """All tars of a shard set, in order of split and number."""

    tasks: tuple[ShardTask, ...]
    scan: Scan

    @property
    def splits(self) -> tuple[str, ...]:
        """Split names in order."""
        return tuple(dict.fromkeys(task.split for task in self.tasks))

    @property
    def samples(self) -> int:
        """Number of samples in all splits."""
        return sum(task.samples for task in self.tasks)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the fingerprints of the tasks."""
        return hashlib.sha256("".join(task.fingerprint for task in self.tasks).encode()).hexdigest()


def plan_shards(spec: ShardSpec, scan: Scan) -> ShardPlan:
    """Divides the scenes of a scan without problems over shards.

    Scenes are shuffled by the seed, so that a shard holds a mixture; tiles of a scene stay together, so that it is
    read once.

    Raises:
        DataError: a split without any tile, or two samples with one key.
    """
    splits = dict.fromkeys(item.scene.split for item in scan.scenes)
    tasks: list[ShardTask] = []
    for split in splits:
        scenes = [item for item in scan.scenes if item.scene.split == split]
        tasks += _plan_split(spec, scan, split, scenes)
    _require_unique((key, cut.item.scene) for task in tasks for cut in task.cuts for key, _ in cut.tiles)
    return ShardPlan(tuple(tasks), scan)


def _plan_split(spec: ShardSpec, scan: Scan, split: str, scenes: list[ScannedScene]) -> list[ShardTask]:
    tiling = scan.tilings[split]
    random.Random(f"{spec.seed} {split}").shuffle(scenes)
    cuts = [_cut(split, item, tiling) for item in scenes]
    if not any(cut.tiles for cut in cuts):
        raise DataError(
            f"split {split!r}: no tile left of {len(scenes)} scene(s); data.tiling drops them all, "
            "use a smaller size or edge: shift"
        )
    recording = Recording(
        codes=scan.codes,
        num_classes=scan.classes.num_classes,
        counted=spec.treat_as_ignored,
        reading=scan.reading,
        scale=scan.scale,
        codec=spec.codec,
        padding=tiling.padding,
        statistics=split == spec.train_split or all(i.scene.split != spec.train_split for i in scan.scenes),
    )
    return [
        _task(split, number, shard, recording)
        for number, shard in enumerate(_divide(cuts, _shard_count(spec, scan, cuts)))
    ]


def _shard_count(spec: ShardSpec, scan: Scan, cuts: Sequence[Cut]) -> int:
    samples = sum(len(cut.tiles) for cut in cuts)
    pixels = sum(tile.window.height * tile.window.width for cut in cuts for _, tile in cut.tiles)
    depth = len(scan.bands) * np.dtype(scan.dtype).itemsize
    by_size = pixels * (depth * spec.codec.ratio + 0.03) / spec.target_bytes
    return min(samples, max(1, min(MIN_SHARDS, samples // MIN_SAMPLES), int(np.ceil(by_size))))


def _divide(cuts: Iterable[Cut], count: int) -> list[tuple[Cut, ...]]:
    """Divides tiles evenly over shards, in order; a scene may continue in the next shard."""
    cuts = list(cuts)
    samples = sum(len(cut.tiles) for cut in cuts)
    shards: list[list[Cut]] = [[] for _ in range(count)]
    shard, position, end = 0, 0, samples // count
    for cut in cuts:
        rest = cut.tiles
        while rest:
            taken, rest = rest[: end - position], rest[end - position :]
            shards[shard].append(replace(cut, tiles=taken))
            position += len(taken)
            if position == end and position < samples:
                shard += 1
                end = samples * (shard + 1) // count
    return [tuple(shard_cuts) for shard_cuts in shards]


def _cut(split: str, item: ScannedScene, tiling: Tiling) -> Cut:
    region = item.scene.region or Window(0, 0, item.info.height, item.info.width)
    stem = _key(f"{split}_{item.scene.id}")
    cut = _labelled(_shifted(region, tiling), item)
    if tiling.size is None:
        named = [(stem, tile) for tile in cut]
    else:
        named = [(f"{stem}_r{tile.window.row:05d}_c{tile.window.column:05d}", tile) for tile in cut]
    return Cut(item, tuple(named))


def _shifted(region: Window, tiling: Tiling) -> Iterable[Tile]:
    """Yields the tiles of a region, in pixels of the whole scene."""
    for tile in tiles(region.height, region.width, tiling):
        windows = (tile.window, tile.inside, tile.labelled)
        yield Tile(
            *(Window(w.row + region.row, w.column + region.column, w.height, w.width) for w in windows)
        )


def _labelled(cut: Iterable[Tile], item: ScannedScene) -> Iterable[Tile]:
    """Leaves out tiles outside of the scene's area."""
    if item.scene.area is None:
        return cut
    assert item.info.transform is not None
    area = shapely.from_wkb(item.scene.area)
    shape = to_pixels(np.array([area], object), Affine(*item.info.transform))[0]
    return [tile for tile in cut if shapely.area(shapely.intersection(shape, _box(tile.labelled))) > 0]


def _box(area: Window) -> Any:
    return shapely.box(area.column, area.row, area.column + area.width, area.row + area.height)


def _key(text: str) -> str:
    """Returns a sample key: without dots (a WebDataset key ends at the first), short enough for a tar header.

    Names beyond ASCII would lose the letters that tell them apart, so they get a digest.
    """
    key = re.sub(r"[^A-Za-z0-9_-]+", "_", text)
    if len(key) > 64 or not text.isascii():
        key = f"{key[:47]}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return key


def _task(split: str, number: int, cuts: tuple[Cut, ...], recording: Recording) -> ShardTask:
    path = f"{split}/{split}-{number:05d}.tar"
    content = [FORMAT, path, _codes_json(recording.codes), {**asdict(recording), "codes": None}]
    for cut in cuts:
        item, scene = cut.item, cut.item.scene
        state = [scene.image.stamp, scene.mask.stamp if scene.mask else ""]
        state += [scene.area.hex()] if scene.area else []
        state += ["lossy"] * scene.lossy_labels
        content.append(
            [scene.id, scene.group, dict(scene.tags), state, asdict(item.info), item.bands, item.resampled]
        )
        content.append([[key, asdict(tile)] for key, tile in cut.tiles])
    text = json.dumps(content, sort_keys=True)
    return ShardTask(split, path, cuts, recording, hashlib.sha256(text.encode()).hexdigest())


def _codes_json(codes: LabelCodes) -> list[Any]:
    known: Mapping[Any, int] = codes.ids or codes.colors
    words = ["nan"] * codes.nan_ignored + ["transparent"] * codes.transparent_ignored
    return words + sorted(
        [code if isinstance(code, int) else list(code), value] for code, value in known.items()
    )


def _require_unique(keys: Iterable[tuple[str, Scene]]) -> None:
    seen: dict[str, Scene] = {}
    for key, scene in keys:
        if key in seen:
            raise DataError(
                f"two samples would be called {key!r}: the names of {seen[key].image} and {scene.image} differ only in "
                "characters that a key cannot hold. Rename one"
            )
        seen[key] = scene

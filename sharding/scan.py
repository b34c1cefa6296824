"""A look at every file of a raw data set before anything is written: headers, pairs, sizes, splits."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from d2ls.errors import DataError
from d2ls.labels import ClassTable, LabelCodes
from sharding.raster import Raster, RasterInfo, Reading, open_raster
from sharding.raster.bands import band_text, bands_by_name, bands_in_order, contradiction
from sharding.raster.base import FLOAT_TYPES, INTEGER_TYPES
from sharding.raster.grids import compare_grids
from sharding.raster.labels import MAX_BANDS, needs_colors, needs_ids
from sharding.scaling import Scale, find_scale, full_scale
from sharding.sources.base import LeftOut, Scene, Source, nearest
from sharding.spec import ShardSpec
from sharding.tiling import Tiling

SHOWN = 30
"""Problems written out in a message; the rest is counted."""


@dataclass(frozen=True)
class ScannedScene:
    """A labelled scene and what its image's header says.

    Attributes:
        scene: its files.
        info: what the header of the image says.
        bands: positions in the file of the channels that are taken.
        resampled: the label image is brought to the grid of the image.
        labels: what the header of the label image says.
        pixel_metres: side of a pixel of the image; None where it cannot be known.
    """

    scene: Scene
    info: RasterInfo
    bands: tuple[int, ...] = ()
    resampled: bool = False
    labels: RasterInfo | None = None
    pixel_metres: float | None = None


@dataclass(frozen=True)
class Scan:
    """What a raw data set holds.

    Attributes:
        classes: the K classes.
        codes: label codes, strays among the ignored ones.
        bands: names of the channels that are taken.
        reading: what is known about the images beyond what they say.
        band_order: see `Source`; empty for sources that know their files.
        dtype: of the pixels as they are stored in shards.
        max_value: pixel value that stands for 1.0.
        scale: of float images, values that stand for dark and bright, a pair a channel.
        tilings: split to tiling.
        scenes: labelled scenes in order of split and name.
        unlabelled: split to number of images whose labels the publisher keeps.
        scene_check: `disjoint`, `unknown`, or `shared` (only under the protocol `paper`).
        license: licence of the data.
        ground_sampling_distance: metres a pixel, or None.
        facts: what the source adds to the card.
        train_split: the split that is learnt from.
        own_classes: the classes are the recipe's own, so that it can mend them.
        left_out: files that are not taken, and why.
        notes: what was converted or chosen, in words.
        warnings: what is possible but seldom meant, in words.
        problems: everything that stands against making shards, in words.
    """

    classes: ClassTable
    codes: LabelCodes
    bands: tuple[str, ...]
    reading: Reading
    band_order: str
    dtype: str
    max_value: float
    scale: Scale | None
    tilings: dict[str, Tiling]
    scenes: tuple[ScannedScene, ...]
    unlabelled: dict[str, int]
    scene_check: str
    license: str
    ground_sampling_distance: float | None
    facts: dict[str, Any]
    train_split: str
    own_classes: bool
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    problems: tuple[str, ...]

    def require_sound(self) -> None:
        """Stops where there are problems.

        Raises:
            DataError: lists them.
        """
        if self.problems:
            raise DataError(report_problems(self.problems))


def report_problems(problems: Iterable[str]) -> str:
    """Lists problems, one a line."""
    problems = list(problems)
    more = [f"  ... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    lines = [f"  {problem}" for problem in problems[:SHOWN]]
    return "\n".join([f"{len(problems)} problem(s) in the raw data, nothing was written:", *lines, *more])


def scan(spec: ShardSpec) -> Scan:
    """Looks at the headers of all images and label images of a data set.

    Raises:
        DataError: no such data set at the root.
        ConfigError: an impossible value in the spec. Problems with single files are listed, not raised.
    """
    source = spec.open()
    indices = spec.band_indices(source.bands)
    codes = spec.codes(source)
    listed = list(source.scenes())
    problems = list(source.missing)
    wanted = [scene for scene in listed if not spec.splits or scene.split in spec.splits]
    problems += _split_problems(spec, {scene.split for scene in listed})
    warnings: list[str] = []
    own = source.name == "custom"
    training_roles, report_role = _role_problems(spec, wanted)
    (problems if own and not spec.splits else warnings).extend(training_roles)
    warnings += report_role
    hidden = Counter(scene.split for scene in wanted if scene.mask is None)
    notes: list[str] = []
    look = _Look(source, indices, problems, notes)
    scanned = [found for scene in wanted if (found := look.at(scene)) is not None]
    problems += _different_names(scanned, source)
    dtype = _common_type(scanned, problems)
    check = _scene_check(scanned, source, problems)
    if not scanned and not problems:
        problems.append(
            f"{spec.root}: no labelled image in it ({sum(hidden.values())} without labels). Correct data.root, "
            "data.splits or, of your own data, data.custom"
        )
    if dtype:
        spec.codec.check(len(indices), dtype)
    problems += _nodata_problems(source.reading.nodata, dtype)
    bands = tuple(source.bands[index] for index in indices)
    scale = find_scale(spec, bands, dtype, scanned, problems)
    return Scan(
        classes=source.classes,
        codes=codes,
        bands=bands,
        reading=source.reading,
        band_order=source.band_order if source.name == "custom" else "",
        dtype=dtype,
        max_value=full_scale(spec, dtype),
        scale=scale,
        tilings={item.scene.split: spec.tiling_of(item.scene.split, source) for item in scanned},
        scenes=tuple(scanned),
        unlabelled=dict(hidden),
        scene_check=check,
        license=spec.license or source.license,
        ground_sampling_distance=spec.ground_sampling_distance or source.ground_sampling_distance,
        facts=source.facts,
        train_split=spec.train_split,
        own_classes=own,
        left_out=(*source.left_out, *_not_made(spec, listed)),
        notes=tuple(notes),
        warnings=tuple(warnings),
        problems=tuple(problems),
    )


def _split_problems(spec: ShardSpec, found: set[str]) -> list[str]:
    names = {*spec.splits, *(name for name in spec.tiling if name != "default")}
    return [
        f"{'data.splits' if name in spec.splits else 'data.tiling'} names the split {name!r}, which is not there. "
        f"{nearest(name, sorted(found))}"
        for name in sorted(names - found)
    ]


def _role_problems(spec: ShardSpec, scenes: list[Scene]) -> tuple[list[str], list[str]]:
    """Lists roles whose split is not there: those of training (unless neither of them is), and the reported one."""
    there = list(dict.fromkeys(scene.split for scene in scenes))
    roles = {"train": spec.train_split, "val": spec.select_split, "test": spec.report_split}
    texts = {
        role: f"roles.{role} names the split {split!r}, which is not there. Name scenes for it in data.custom.split, "
        f"or another split in the roles. {nearest(split, there)}"
        for role, split in roles.items()
        if there and split and split not in there
    }
    trains = {spec.train_split, spec.select_split} & {*there}
    training = [texts[role] for role in ("train", "val") if role in texts and trains]
    return training, [texts["test"]] if "test" in texts else []


def _not_made(spec: ShardSpec, scenes: list[Scene]) -> list[LeftOut]:
    """Lists what data.splits leaves out, and images whose labels the publisher keeps."""
    left_out = []
    for split in dict.fromkeys(scene.split for scene in scenes):
        found = [scene for scene in scenes if scene.split == split]
        hidden = [scene for scene in found if scene.mask is None]
        if spec.splits and split not in spec.splits:
            left_out.append(
                LeftOut(f"split {split!r} is not in data.splits", len(found), str(found[0].image))
            )
        elif hidden:
            why = f"split {split!r}: the publisher keeps the labels"
            left_out.append(LeftOut(why, len(hidden), str(hidden[0].image)))
    return left_out


@dataclass
class _Look:
    """Opens both files of labelled scenes; problems are noted, not raised."""

    source: Source
    taken: tuple[int, ...]
    problems: list[str]
    notes: list[str]

    def at(self, scene: Scene) -> ScannedScene | None:
        """Returns what the headers of a scene say, None where it has no labels or a file cannot be read."""
        if scene.mask is None:
            return None
        try:
            with open_raster(scene.image, self.source.reading) as image, open_raster(scene.mask) as labels:
                return self._compare(scene, image, labels)
        except DataError as error:
            self.problems.append(unreadable(error, self.source.name == "custom"))
            return None

    def _compare(self, scene: Scene, image: Raster, labels: Raster) -> ScannedScene:
        info = image.info
        positions = self._bands(image)
        resampled = self._place(image, labels)
        if not info.read_as:
            types = ", ".join((*INTEGER_TYPES, *FLOAT_TYPES))
            self.problems.append(
                f"{image.ref}: pixels are {info.dtype}, which is not read; convert them to {types}"
            )
        if image.georeference.rpc:
            self.notes.append(
                f"{image.ref}: placed by RPC only, which are not applied: no georeference is kept"
            )
        self.problems += _label_problems(scene, labels.info, bool(self.source.codes.ids))
        taken = tuple(positions[band] for band in self.taken)
        metres = image.georeference.pixel_metres(info.height, info.width)
        return ScannedScene(scene, info, taken, resampled, labels.info, metres)

    def _bands(self, image: Raster) -> tuple[int, ...]:
        """Returns the positions of all bands that the source names."""
        info, wanted, order = image.info, self.source.bands, self.source.band_order
        plain = bands_in_order(info, wanted)
        named = bands_by_name(info, wanted)
        positions = named if order == "names" else plain
        names = ", ".join(wanted)
        if order == "refuse" and plain is not None and (text := contradiction(info, wanted)):
            self.problems.append(
                f"{image.ref}: {text}. Correct data.custom.bands, or say with data.custom.band_order what holds: "
                "names (those in each file) or positions (the order of data.custom.bands)"
            )
        elif positions is None and order == "names":
            self.problems.append(
                f"{image.ref}: {band_text(info)}, not named {names}, and data.custom.band_order is names"
            )
        elif positions is None:
            self.problems.append(
                f"{image.ref}: {info.bands} band(s), expected {len(wanted)} ({names}); the file has {band_text(info)}. "
                "Name all channels of the files in data.custom.bands, then choose with data.bands"
                + (", or take them by their names with data.custom.band_order: names" if named else "")
            )
        return positions or tuple(range(len(wanted)))

    def _place(self, image: Raster, labels: Raster) -> bool:
        """Compares the grids; returns whether labels are to be resampled."""
        align = self.source.align
        difference = compare_grids(image, labels) if align != "ignore" else None
        if difference is None:
            if (image.info.height, image.info.width) != (labels.info.height, labels.info.width):
                self.problems.append(_sizes(image, labels))
            return False
        if not difference.same_ground:
            self.problems.append(
                f"{labels.ref}: {difference.text}; image {image.ref}. Correct the georeference of one of them, "
                "pair other files (data.custom.images, data.custom.masks), or say data.custom.align: ignore"
            )
        elif align == "refuse":
            self.problems.append(
                f"{labels.ref}: on another grid than its image {image.ref}: {difference.text}. data.custom.align: "
                "resample takes the label at the centre of each pixel, ignore pairs pixels as they are stored"
            )
        else:
            self.notes.append(f"{labels.ref}: resampled to the grid of {image.ref}: {difference.text}")
            return True
        return False


def unreadable(error: DataError, own: bool) -> str:
    """Returns the text of an error in reading a file, with a way out where it names none."""
    text = str(error).rstrip(".")
    if "data.custom" in text or "onvert" in text:
        return f"{text}."
    return f"{text}. " + (
        "Replace the file, or name it in data.custom.unused" if own else "Get it from the publisher again"
    )


def _sizes(image: Raster, labels: Raster) -> str:
    text = (
        f"{image.ref} is {image.info.height}x{image.info.width} (height x width), "
        f"its label image {labels.ref} is {labels.info.height}x{labels.info.width}"
    )
    for raster in (image, labels):
        if raster.info.orientation >= 5:
            text += (
                f". EXIF turns {raster.ref} (orientation {raster.info.orientation}); images are taken as displayed, "
                "so the other one must be upright as well"
            )
    return f"{text}. Save both in one size, or pair other files (data.custom.images, data.custom.masks)"


def _different_names(scanned: list[ScannedScene], source: Source) -> list[str]:
    """Compares the colour interpretation of files whose names say nothing about the recipe's."""
    if source.band_order != "refuse":
        return []
    first: dict[int, ScannedScene] = {}
    for item in scanned:
        if contradiction(item.info, source.bands):
            continue
        other = first.setdefault(item.info.bands, item)
        pairs = zip(item.info.names, other.info.names, strict=True)
        if any(here and there and here != there for (_, here), (_, there) in pairs):
            return [
                f"{item.scene.image} has {band_text(item.info)}, {other.scene.image} has {band_text(other.info)}. "
                "Say with data.custom.band_order what holds: names (those in each file) or positions"
            ]
    return []


def _label_problems(scene: Scene, info: RasterInfo, ids: bool) -> list[str]:
    if ids and (info.bands > MAX_BANDS or info.dtype.startswith("complex")):
        return [f"{scene.mask}: {needs_ids(info.bands, info.dtype)}"]
    if not ids and (info.bands not in (3, 4) or info.dtype != "uint8"):
        return [f"{scene.mask}: {needs_colors(info.bands, info.dtype)}"]
    return []


def _common_type(scanned: list[ScannedScene], problems: list[str]) -> str:
    types: dict[str, list[ScannedScene]] = defaultdict(list)
    for item in scanned:
        types[item.info.read_as].append(item)
    if len(types) > 1:
        rare = min(types, key=lambda name: len(types[name]))
        problems.append(
            f"images are of several types ({', '.join(sorted(name or 'others' for name in types))}); "
            f"{rare} for instance: {types[rare][0].scene.image}. Convert them to one type"
        )
    return max(types, key=lambda name: len(types[name])) if types else "uint8"


def _nodata_problems(nodata: float | None, dtype: str) -> list[str]:
    if nodata is None or dtype not in INTEGER_TYPES:
        return []
    limits = np.iinfo(dtype)
    if nodata == int(nodata) and limits.min <= nodata <= limits.max:
        return []
    return [
        f"data.custom.nodata: {nodata:g} is no value of {dtype} images; allowed are {limits.min} to {limits.max}"
    ]


def _scene_check(scanned: list[ScannedScene], source: Source, problems: list[str]) -> str:
    """Says whether any scene stands in two splits."""
    splits: dict[str, set[str]] = defaultdict(set)
    for item in scanned:
        if item.scene.group is None:
            return "unknown"
        splits[item.scene.group].add(item.scene.split)
    shared = {group: sorted(names) for group, names in splits.items() if len(names) > 1}
    if not shared:
        return "disjoint"
    if source.protocol == "clean":
        group, names = next(iter(shared.items()))
        problems.append(
            f"{len(shared)} scene(s) stand in more than one split, for instance {group!r} in {' and '.join(names)}: "
            f"scores would be too good. {source.advice}, or say data.protocol=paper to keep "
            "the split as it was published"
        )
    return "shared"

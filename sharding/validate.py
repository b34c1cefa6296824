"""Second step: read pixels before anything is written: damaged files, unknown labels, splits without labels."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from d2ls.errors import DataError, LabelError
from d2ls.labels import IGNORE, LabelCodes
from d2ls.window import Window
from sharding.headers import ScannedScene, with_advice
from sharding.pixel_statistics import PixelSums, Scale, histogram
from sharding.raster import Raster, Reading
from sharding.raster.base import Mask
from sharding.raster.label_source import LabelSource
from sharding.scaling import range_warnings
from sharding.scan import Scan
from sharding.tasks import TaskRunner, run_here
from sharding.tiling import Tiling, tiles

BLOCK = 2048
"""Side of the windows in which large scenes are read."""

GROUP = 16
"""Scenes in one task."""

MAX_IGNORED = 0.5
"""Share of ignored pixels of a split above which there is a warning."""


class Rules(NamedTuple):
    """The part of a scan that `check_scenes` needs."""

    codes: LabelCodes
    reading: Reading
    num_classes: int
    scale: Scale | None
    summed: str
    """Split whose pixels are summed up; empty for 8-bit images, whose range needs no check."""
    custom: bool


@dataclass(frozen=True)
class LabelCounts:
    """Pixels of each class (K) and ignored pixels."""

    classes: tuple[int, ...]
    ignored: int = 0

    def __add__(self, other: "LabelCounts") -> "LabelCounts":
        classes = tuple(a + b for a, b in zip(self.classes, other.classes, strict=True))
        return LabelCounts(classes, self.ignored + other.ignored)

    @property
    def labelled(self) -> int:
        """Pixels of all classes."""
        return sum(self.classes)

    @property
    def ignored_share(self) -> float:
        """Share of ignored pixels."""
        return self.ignored / max(self.labelled + self.ignored, 1)


@dataclass(frozen=True)
class SceneCheck:
    """Problems and counts from the pixels of a scene."""

    split: str
    counts: LabelCounts
    problems: tuple[str, ...]
    sums: PixelSums


@dataclass(frozen=True)
class Validation:
    """Problems and counts from the headers and pixels of a data set.

    Attributes:
        scan: the headers; its problems and warnings include those of the pixels.
        counts: split to pixels; empty if a label image has a problem.
    """

    scan: Scan
    counts: Mapping[str, LabelCounts]


def validate(scan: Scan, run: TaskRunner = run_here) -> Validation:
    """Reads every image and label image whole; lists all problems and writes nothing.

    Args:
        scan: the headers.
        run: runs the tasks, one per group of scenes.
    """
    summed = "" if scan.dtype == "uint8" else scan.train_split
    rules = Rules(scan.codes, scan.reading, scan.classes.num_classes, scan.scale, summed, scan.custom_classes)
    groups = [scan.scenes[start : start + GROUP] for start in range(0, len(scan.scenes), GROUP)]
    checks = [check for group in run(check_scenes, groups, rules) for check in group]
    damaged = [problem for check in checks for problem in check.problems]
    counts = {item.scene.split: LabelCounts((0,) * rules.num_classes) for item in scan.scenes}
    for check in checks:
        counts[check.split] += check.counts
    useless = () if damaged else label_problems(scan, counts)
    problems = dict.fromkeys(text.rstrip(".") for text in (*scan.problems, *damaged, *useless))
    sums = [check.sums for check in checks]
    warnings = range_warnings(sums, scan.bands, scan.dtype, scan.max_value, scan.scale)
    warnings += [] if damaged else label_warnings(scan, counts)
    return Validation(
        replace(scan, problems=tuple(problems), warnings=(*scan.warnings, *warnings)),
        {} if damaged else counts,
    )


def check_scenes(scenes: Sequence[ScannedScene], rules: Rules) -> list[SceneCheck]:
    """Reads images and label images whole; returns their problems and the pixels of each class."""
    return [_check_scene(item, rules) for item in scenes]


def require_labels(scan: Scan) -> None:
    """Reads label images until each class was seen in training and each split has a labelled pixel.

    Raises:
        DataError: a split without a labelled pixel, or a class without a training pixel.
        LabelError: an undeclared label, in what was read.
    """
    counts: dict[str, LabelCounts] = {}
    for split in dict.fromkeys(item.scene.split for item in scan.scenes):
        counts[split] = LabelCounts((0,) * scan.classes.num_classes)
        for window_counts in _labels_of(scan, split):
            counts[split] += window_counts
            if all(counts[split].classes) or (counts[split].labelled and split != scan.train_split):
                break
    replace(scan, problems=tuple(label_problems(scan, counts))).raise_problems()


def label_problems(scan: Scan, counts: Mapping[str, LabelCounts]) -> list[str]:
    """Lists problems that make a set useless: a split without a label, a class without a training pixel."""
    problems = [
        f"split {split!r}: every pixel is ignored, {of_split.ignored} of them. Correct `label_values` in "
        "data.custom.classes, data.custom.ignored and data.custom.nodata, or leave the split out"
        for split, of_split in counts.items()
        if of_split.ignored and not of_split.labelled
    ]
    return problems + [text for is_error, text in unseen_classes(scan, counts) if is_error]


def label_warnings(scan: Scan, counts: Mapping[str, LabelCounts]) -> list[str]:
    """Lists warnings: what is possible but rarely intended."""
    warnings = [text for is_error, text in unseen_classes(scan, counts) if not is_error]
    warnings += [
        f"split {split!r}: {of_split.ignored_share:.0%} of the pixels are ignored, more than {MAX_IGNORED:.0%}. If "
        "that is not intended, correct data.custom.ignored or the `label_values` of the classes"
        for split, of_split in counts.items()
        if of_split.labelled and of_split.ignored_share > MAX_IGNORED
    ]
    if scan.classes.num_classes == 1:
        warnings.append(
            f"the only class is {scan.classes.names[0]!r}: there is nothing to distinguish it from. Give what "
            "surrounds it a class of its own in data.custom.classes, instead of ignoring it"
        )
    return warnings


def unseen_classes(scan: Scan, counts: Mapping[str, LabelCounts]) -> Iterator[tuple[bool, str]]:
    """Yields, for each class without a pixel in a split that has labels, whether that is an error, and a text."""
    for split, of_split in counts.items():
        for index, count in enumerate(of_split.classes):
            if count or not of_split.labelled:
                continue
            name, scored = scan.classes.names[index], scan.classes.scored[index]
            ignored = f" ({of_split.ignored_share:.0%} of its pixels are ignored)" if of_split.ignored else ""
            if split != scan.train_split:
                yield False, f"class {name!r} has no pixel in the split {split!r}: it has no score there"
                continue
            yield (
                scored and scan.custom_classes,
                f"class {name!r} has no pixel in the training split {split!r}{ignored}: it cannot be learnt. Correct "
                "its `label_values` in data.custom.classes or data.custom.ignored, give the split a scene that holds "
                "it, take the class out, or exclude it from the score: `scored: false`",
            )


def _labels_of(scan: Scan, split: str) -> Iterator[LabelCounts]:
    """Yields the counts of a split's label images, window by window."""
    for item in scan.scenes:
        if item.scene.split == split:
            with item.opened(scan.reading, scan.codes) as (_, labels):
                for area in _areas((item.info.height, item.info.width), item.scene.region):
                    yield _count(labels.read(area), None, scan.classes.num_classes)


def _check_scene(item: ScannedScene, rules: Rules) -> SceneCheck:
    scene, info, sums = item.scene, item.info, PixelSums()
    size = (info.height, info.width)
    try:
        with item.opened(rules.reading, rules.codes) as (image, labels):
            if size == labels.size:
                counts, problems = _read(_areas(size, scene.region), item, image, labels, rules, sums)
            else:
                counts, problems = _read(_areas(size), item, image, None, rules, sums)
                problems += _read(_areas(labels.size), item, None, labels, rules, sums)[1]
    except DataError as error:
        counts, problems = LabelCounts((0,) * rules.num_classes), [with_advice(error, rules.custom)]
    return SceneCheck(scene.split, counts, tuple(problems), sums)


def _read(
    areas: Iterable[Window],
    item: ScannedScene,
    image: Raster | None,
    labels: LabelSource | None,
    rules: Rules,
    sums: PixelSums,
) -> tuple[LabelCounts, list[str]]:
    """Reads windows of image and label image, each up to its first error; adds pixels to the sums."""
    counts, errors = LabelCounts((0,) * rules.num_classes), {}
    bands = item.bands if max(item.bands, default=0) < item.info.bands else None
    summed = bands is not None and item.scene.split == rules.summed
    for area in areas:
        valid = None
        if image and item.info.read_as and "image" not in errors:
            try:
                pixels, valid = image.read(area, bands)
                if summed and (pixels.dtype == np.uint16 or rules.scale):
                    sums.add(pixels, valid, rules.scale)
            except DataError as error:
                errors["image"] = with_advice(error, rules.custom)
        if labels and "labels" not in errors:
            try:
                counts += _count(labels.read(area), valid, rules.num_classes)
            except LabelError as error:
                errors["labels"] = str(error)
            except DataError as error:
                errors["labels"] = with_advice(error, rules.custom)
    return counts, list(errors.values())


def _areas(size: tuple[int, int], region: Window | None = None) -> Iterator[Window]:
    region = region or Window(0, 0, *size)
    for tile in tiles(region.height, region.width, Tiling(BLOCK, edge="pad")):
        area = tile.inside
        yield Window(area.row + region.row, area.column + region.column, area.height, area.width)


def _count(ids: npt.NDArray[np.uint8], valid: Mask | None, num_classes: int) -> LabelCounts:
    if valid is not None:
        ids = np.where(valid, ids, np.uint8(IGNORE))
    pixels = histogram(ids)[:num_classes].tolist()
    return LabelCounts(tuple(pixels), ids.size - sum(pixels))

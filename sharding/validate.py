"""A look at pixels before anything is written: damaged files, unknown labels, splits from which nothing is learnt."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from d2ls.errors import DataError, LabelError
from d2ls.labels import IGNORE, LabelCodes
from sharding.raster import Raster, Reading, open_raster
from sharding.raster.base import Mask
from sharding.raster.class_ids import ClassIds
from sharding.scaling import Scale, value_warnings
from sharding.scan import Scan, ScannedScene, report_problems, unreadable
from sharding.shard_manifest import PixelSums, histogram
from sharding.tiling import Tiling, Window, tiles

BLOCK = 2048
"""Side of the windows in which large scenes are read."""

GROUP = 16
"""Scenes looked at in one piece of work."""

MOST_IGNORED = 0.5
"""Share of the pixels of a split above which ignored ones get a warning."""


class Rules(NamedTuple):
    """What is needed to look at the pixels of a scene; see `Scan`."""

    codes: LabelCodes
    reading: Reading
    num_classes: int
    scale: Scale | None
    summed: str
    """Split whose pixels are summed up; empty where their range says nothing (8 bit)."""
    own: bool


@dataclass(frozen=True)
class LabelCounts:
    """Pixels of each class (K) and ignored ones."""

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
    """What the pixels of a scene say."""

    split: str
    counts: LabelCounts
    problems: tuple[str, ...]
    sums: PixelSums


@dataclass(frozen=True)
class Validation:
    """What headers and pixels of a data set say.

    Attributes:
        scan: what the headers say; all problems and warnings are in it.
        counts: split to pixels, where no label image has a problem.
    """

    scan: Scan
    counts: Mapping[str, LabelCounts]


def rules(scan: Scan) -> Rules:
    """Takes what `check_scenes` needs out of a scan."""
    summed = "" if scan.dtype == "uint8" else scan.train_split
    return Rules(scan.codes, scan.reading, scan.classes.num_classes, scan.scale, summed, scan.own_classes)


def scene_groups(scan: Scan) -> list[tuple[ScannedScene, ...]]:
    """Divides the scenes of a scan into pieces of work."""
    scenes = scan.scenes
    return [scenes[start : start + GROUP] for start in range(0, len(scenes), GROUP)]


def check_scenes(scenes: Sequence[ScannedScene], rules: Rules) -> list[SceneCheck]:
    """Reads images and label images whole: what is wrong with them, and how many pixels each class has."""
    return [_check_scene(item, rules) for item in scenes]


def validated(scan: Scan, checks: Iterable[SceneCheck]) -> Validation:
    """Joins what `check_scenes` found to the scan."""
    checks = list(checks)
    found = [problem for check in checks for problem in check.problems]
    nothing = LabelCounts((0,) * scan.classes.num_classes)
    counts = {item.scene.split: nothing for item in scan.scenes}
    for check in checks:
        counts[check.split] += check.counts
    more = () if found else unteachable(scan, counts)
    problems = dict.fromkeys(text.rstrip(".") for text in (*scan.problems, *found, *more))
    warnings = value_warnings((check.sums for check in checks), scan)
    warnings += [] if found else odd(scan, counts)
    return Validation(
        replace(scan, problems=tuple(problems), warnings=(*scan.warnings, *warnings)),
        {} if found else counts,
    )


def require_teachable(scan: Scan) -> None:
    """Reads label images only until each class is seen in training and each split has a labelled pixel.

    Raises:
        DataError: a split without a labelled pixel, or a class that training never sees.
        LabelError: a label that is not declared, in what was read.
    """
    counts: dict[str, LabelCounts] = {}
    for split in dict.fromkeys(item.scene.split for item in scan.scenes):
        counts[split] = LabelCounts((0,) * scan.classes.num_classes)
        for seen in _labels_of(scan, split):
            counts[split] += seen
            if all(counts[split].classes) or (counts[split].labelled and split != scan.train_split):
                break
    if problems := unteachable(scan, counts):
        raise DataError(report_problems(problems))


def unteachable(scan: Scan, counts: Mapping[str, LabelCounts]) -> list[str]:
    """Lists what makes a set useless: a split that is ignored whole, a class without a pixel to learn from."""
    empty = [split for split, found in counts.items() if found.ignored and not found.labelled]
    problems = [
        f"split {split!r}: every pixel is ignored, {counts[split].ignored} of them. Correct `label_values` in "
        "data.custom.classes, data.custom.ignored and data.custom.nodata, or leave the split out"
        for split in empty
    ]
    return problems + [text for needed, text in unseen_classes(scan, counts) if needed]


def odd(scan: Scan, counts: Mapping[str, LabelCounts]) -> list[str]:
    """Lists what is possible but seldom meant."""
    warnings = [text for needed, text in unseen_classes(scan, counts) if not needed]
    warnings += [
        f"split {split!r}: {found.ignored_share:.0%} of the pixels are ignored, more than {MOST_IGNORED:.0%}. If that "
        "is not meant, correct data.custom.ignored or the `label_values` of the classes"
        for split, found in counts.items()
        if found.labelled and found.ignored_share > MOST_IGNORED
    ]
    if scan.classes.num_classes == 1:
        warnings.append(
            f"the only class is {scan.classes.names[0]!r}: there is nothing to tell it from. Give what surrounds it "
            "a class of its own in data.custom.classes, instead of ignoring it"
        )
    return warnings


def unseen_classes(scan: Scan, counts: Mapping[str, LabelCounts]) -> Iterator[tuple[bool, str]]:
    """Yields whether it must be mended, and a text, for each class without a pixel in a split that has some."""
    for split, found in counts.items():
        for index, count in enumerate(found.classes):
            if count or not found.labelled:
                continue
            name, scored = scan.classes.names[index], scan.classes.scored[index]
            ignored = f" ({found.ignored_share:.0%} of its pixels are ignored)" if found.ignored else ""
            if split != scan.train_split:
                yield False, f"class {name!r} has no pixel in the split {split!r}: it has no score there"
                continue
            yield (
                scored and scan.own_classes,
                f"class {name!r} has no pixel in the training split {split!r}{ignored}: it cannot be learnt. Correct "
                "its `label_values` in data.custom.classes or data.custom.ignored, give the split a scene that holds "
                "it, take the class out, or say that it does not count: `scored: false`",
            )


def _labels_of(scan: Scan, split: str) -> Iterator[LabelCounts]:
    """Yields the pixels of one window of a split's label images after the other."""
    for item in scan.scenes:
        assert item.scene.mask is not None
        if item.scene.split == split:
            with ExitStack() as stack:
                image = stack.enter_context(open_raster(item.scene.image, scan.reading))
                mask = stack.enter_context(open_raster(item.scene.mask))
                labels = ClassIds(mask, scan.codes, image if item.resampled else None)
                for area in _areas(image, item.scene.region):
                    yield _count(labels.read(area), None, scan.classes.num_classes)


def _check_scene(item: ScannedScene, rules: Rules) -> SceneCheck:
    scene, info, sums = item.scene, item.info, PixelSums()
    assert scene.mask is not None
    try:
        with open_raster(scene.image, rules.reading) as image, open_raster(scene.mask) as mask:
            labels = ClassIds(mask, rules.codes, image if item.resampled else None)
            one_grid = item.resampled or (info.height, info.width) == (mask.info.height, mask.info.width)
            if one_grid:
                counts, problems = _look(_areas(image, scene.region), item, image, labels, rules, sums)
            else:
                counts, problems = _look(_areas(image), item, image, None, rules, sums)
                problems += _look(_areas(mask), item, None, labels, rules, sums)[1]
    except DataError as error:
        counts, problems = LabelCounts((0,) * rules.num_classes), [unreadable(error, rules.own)]
    return SceneCheck(scene.split, counts, tuple(problems), sums)


def _look(
    areas: Iterable[Window],
    item: ScannedScene,
    image: Raster | None,
    labels: ClassIds | None,
    rules: Rules,
    sums: PixelSums,
) -> tuple[LabelCounts, list[str]]:
    """Reads windows of image and label image, of each up to its first fault; adds pixels to the sums."""
    counts, faults = LabelCounts((0,) * rules.num_classes), {}
    bands = item.bands if max(item.bands, default=0) < item.info.bands else None
    summed = bands is not None and item.scene.split == rules.summed
    for area in areas:
        valid = None
        if image and item.info.read_as and "image" not in faults:
            try:
                pixels, valid = image.read(area, bands)
                if summed and (pixels.dtype == np.uint16 or rules.scale):
                    sums.add(pixels, valid, rules.scale)
            except DataError as error:
                faults["image"] = unreadable(error, rules.own)
        if labels and "labels" not in faults:
            try:
                counts += _count(labels.read(area), valid, rules.num_classes)
            except DataError as error:
                told = isinstance(error, LabelError)
                faults["labels"] = str(error) if told else unreadable(error, rules.own)
    return counts, list(faults.values())


def _areas(raster: Raster, region: Window | None = None) -> Iterator[Window]:
    region = region or Window(0, 0, raster.info.height, raster.info.width)
    for tile in tiles(region.height, region.width, Tiling(BLOCK, edge="pad")):
        area = tile.inside
        yield Window(area.row + region.row, area.column + region.column, area.height, area.width)


def _count(ids: npt.NDArray[np.uint8], valid: Mask | None, num_classes: int) -> LabelCounts:
    if valid is not None:
        ids = np.where(valid, ids, np.uint8(IGNORE))
    found = histogram(ids)[:num_classes].tolist()
    return LabelCounts(tuple(found), ids.size - sum(found))

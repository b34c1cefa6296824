"""A look at every file of a raw data set before anything is written: headers, pairs, sizes, splits."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from d2ls.errors import DataError
from d2ls.labels import ClassTable, LabelCodes
from sharding.raster import RasterInfo, open_raster
from sharding.sources.base import Scene, Source, nearest
from sharding.spec import ShardSpec
from sharding.tiling import Tiling

SHOWN = 30
"""Problems written out in a message; the rest is counted."""


@dataclass(frozen=True)
class SurveyedScene:
    """A labelled scene and what its image's header says."""

    scene: Scene
    info: RasterInfo


@dataclass(frozen=True)
class Survey:
    """What a raw data set holds.

    Attributes:
        classes: the K classes.
        codes: label codes, strays among the ignored ones.
        bands: names of the channels that are taken.
        band_indices: their positions in the files.
        all_bands: the file has these channels only, in this order.
        dtype: of the pixels.
        tilings: split to tiling.
        scenes: labelled scenes in order of split and name.
        unlabelled: split to number of images whose labels the publisher keeps.
        scene_check: `disjoint`, `unknown`, or `shared` (only under the protocol `paper`).
        license: licence of the data.
        ground_sampling_distance: metres a pixel, or None.
        facts: what the source adds to the card.
        problems: everything that stands against making shards, in words.
    """

    classes: ClassTable
    codes: LabelCodes
    bands: tuple[str, ...]
    band_indices: tuple[int, ...]
    all_bands: bool
    dtype: str
    tilings: dict[str, Tiling]
    scenes: tuple[SurveyedScene, ...]
    unlabelled: dict[str, int]
    scene_check: str
    license: str
    ground_sampling_distance: float | None
    facts: dict[str, Any]
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


def survey(spec: ShardSpec) -> Survey:
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
    hidden = Counter(scene.split for scene in wanted if scene.mask is None)
    surveyed = [found for scene in wanted if (found := _look(scene, source, problems)) is not None]
    dtype = _common_type(surveyed, problems)
    check = _scene_check(surveyed, source, problems)
    if not surveyed and not problems:
        problems.append(f"{spec.root}: no labelled image in it ({sum(hidden.values())} without labels)")
    if dtype in ("uint8", "uint16"):
        spec.codec.check(len(indices), dtype)
    return Survey(
        classes=source.classes,
        codes=codes,
        bands=tuple(source.bands[index] for index in indices),
        band_indices=indices,
        all_bands=indices == tuple(range(len(source.bands))),
        dtype=dtype,
        tilings={item.scene.split: spec.tiling_of(item.scene.split, source) for item in surveyed},
        scenes=tuple(surveyed),
        unlabelled=dict(hidden),
        scene_check=check,
        license=spec.license or source.license,
        ground_sampling_distance=spec.ground_sampling_distance or source.ground_sampling_distance,
        facts=source.facts,
        problems=tuple(problems),
    )


def _split_problems(spec: ShardSpec, found: set[str]) -> list[str]:
    names = {*spec.splits, *(name for name in spec.tiling if name != "default")}
    return [
        f"split {name!r}: the data set has none. {nearest(name, sorted(found))}"
        for name in sorted(names - found)
    ]


def _look(scene: Scene, source: Source, problems: list[str]) -> SurveyedScene | None:
    """Opens both files of a labelled scene; a problem is noted, not raised."""
    if scene.mask is None:
        return None
    try:
        with open_raster(scene.image) as image:
            info = image.info
        with open_raster(scene.mask) as mask:
            label_info = mask.info
    except DataError as error:
        problems.append(str(error))
        return None
    if (info.height, info.width) != (label_info.height, label_info.width):
        problems.append(
            f"{scene.image} is {info.height}x{info.width} (height x width), "
            f"its label image {scene.mask} is {label_info.height}x{label_info.width}"
        )
    if info.bands != len(source.bands):
        names = ", ".join(source.bands)
        problems.append(f"{scene.image}: {info.bands} band(s), expected {len(source.bands)} ({names})")
    if info.dtype not in ("uint8", "uint16"):
        problems.append(f"{scene.image}: pixels are {info.dtype}; only uint8 and uint16 are stored")
    problems += _label_problems(scene, label_info, bool(source.codes.ids))
    return SurveyedScene(scene, info)


def _label_problems(scene: Scene, info: RasterInfo, ids: bool) -> list[str]:
    if ids and info.bands != 1 and not info.palette:
        return [f"{scene.mask}: label ids need one band, this file has {info.bands}"]
    if not ids and (info.bands not in (3, 4) or info.dtype != "uint8"):
        return [
            f"{scene.mask}: label colours need 8-bit RGB or a palette, this file has {info.bands} x {info.dtype}"
        ]
    return []


def _common_type(surveyed: list[SurveyedScene], problems: list[str]) -> str:
    types: dict[str, list[SurveyedScene]] = defaultdict(list)
    for item in surveyed:
        types[item.info.dtype].append(item)
    if len(types) > 1:
        rare = min(types, key=lambda name: len(types[name]))
        problems.append(
            f"images are of several types ({', '.join(sorted(types))}); "
            f"{rare} for instance: {types[rare][0].scene.image}"
        )
    return max(types, key=lambda name: len(types[name])) if types else "uint8"


def _scene_check(surveyed: list[SurveyedScene], source: Source, problems: list[str]) -> str:
    """Says whether any scene stands in two splits."""
    splits: dict[str, set[str]] = defaultdict(set)
    for item in surveyed:
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

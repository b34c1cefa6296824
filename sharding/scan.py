"""First step: read the headers of all files of a raw data set and list all problems, before anything is written."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from d2ls.errors import DataError
from d2ls.labels import ClassTable, LabelCodes
from sharding.consistency import (
    band_name_problems,
    check_scene_splits,
    common_dtype,
    nodata_problems,
    padding_warnings,
    role_problems,
    split_problems,
)
from sharding.headers import HeaderReader, ScannedScene, common_pixel_metres
from sharding.pixel_statistics import Scale
from sharding.raster import Reading
from sharding.scaling import find_scale, full_scale
from sharding.sources.base import LeftOut, Scene
from sharding.spec import ShardSpec
from sharding.tiling import Tiling

MAX_SHOWN = 30
"""Problems written out in a message; the rest is counted."""


@dataclass(frozen=True)
class Scan:
    """The headers of a raw data set, and what was found in them.

    Attributes:
        classes: the K classes.
        codes: label codes; those of `ShardSpec.treat_as_ignored` are ignored.
        bands: names of the channels that are taken.
        reading: what is known about the images beyond their headers.
        band_order: see `Source`; empty for published data sets.
        dtype: of the pixels in shards.
        max_value: pixel value that stands for 1.0.
        scale: of float images, the values that stand for dark and bright, a pair per channel.
        tilings: split to tiling.
        scenes: labelled scenes in order of split and name.
        unlabelled: split to number of images whose labels the publisher keeps.
        scene_check: `disjoint`, `unknown`, or `shared` (only under the protocol `paper`).
        license: licence of the data.
        ground_sampling_distance: metres per pixel, or None.
        extra: entries that the source adds to the card.
        train_split: the split to train on.
        custom_classes: the recipe declares the classes, so that the user can correct them.
        left_out: files that are not taken, and why.
        notes: texts on what was converted or chosen.
        warnings: texts on what is possible but rarely intended.
        problems: texts on what prevents shards from being made.
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
    extra: dict[str, Any]
    train_split: str
    custom_classes: bool
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    problems: tuple[str, ...]

    def raise_problems(self) -> None:
        """Raises if there are problems.

        Raises:
            DataError: lists them.
        """
        if self.problems:
            raise DataError(
                f"{len(self.problems)} problem(s) in the raw data, nothing was written:\n{listed(self.problems)}"
            )


def listed(problems: Iterable[str]) -> str:
    """Returns problems as text, one per line; only the first `MAX_SHOWN` of many."""
    problems = list(problems)
    rest = len(problems) - MAX_SHOWN
    more = [f"  ... and {rest} more"] if rest > 0 else []
    return "\n".join([*(f"  {problem}" for problem in problems[:MAX_SHOWN]), *more])


def scan(spec: ShardSpec) -> Scan:
    """Reads the headers of all images and label images of a data set.

    Raises:
        DataError: no such data set at the root.
        ConfigError: an impossible value in the spec. Problems with single files are listed, not raised.
    """
    source = spec.open()
    custom = source.name == "custom"
    indices = spec.band_indices(source.bands)
    bands = tuple(source.bands[index] for index in indices)
    codes = spec.codes(source)
    all_scenes = list(source.scenes())
    scenes = [scene for scene in all_scenes if not spec.splits or scene.split in spec.splits]
    hidden = Counter(scene.split for scene in scenes if scene.mask is None)

    problems = [*source.missing, *split_problems(spec, {scene.split for scene in all_scenes})]
    training_roles, warnings = role_problems(spec, scenes)
    if custom and not spec.splits:
        problems += training_roles
    else:
        warnings = training_roles + warnings
    headers = HeaderReader(source, indices, problems)
    scanned = [item for scene in scenes if (item := headers.read(scene)) is not None]
    problems += band_name_problems(scanned, source)
    dtype = common_dtype(scanned, problems)
    scene_check = check_scene_splits(scanned, source, problems)
    if not scanned and not problems:
        problems.append(
            f"{spec.root}: no labelled image in it ({sum(hidden.values())} without labels). Correct data.root, "
            "data.splits or, for your own data, data.custom"
        )
    if dtype:
        spec.codec.check(len(indices), dtype)
    problems += nodata_problems(source.reading.nodata, dtype)
    scale = find_scale(spec, bands, dtype, scanned, problems)
    tilings = {item.scene.split: spec.tiling_of(item.scene.split, source) for item in scanned}
    return Scan(
        classes=source.classes,
        codes=codes,
        bands=bands,
        reading=source.reading,
        band_order=source.band_order if custom else "",
        dtype=dtype,
        max_value=full_scale(spec, dtype),
        scale=scale,
        tilings=tilings,
        scenes=tuple(scanned),
        unlabelled=dict(hidden),
        scene_check=scene_check,
        license=spec.license or source.license,
        ground_sampling_distance=(
            spec.ground_sampling_distance or source.ground_sampling_distance or common_pixel_metres(scanned)
        ),
        extra=source.extra,
        train_split=spec.train_split,
        custom_classes=custom,
        left_out=(*source.left_out, *_left_out(spec, all_scenes)),
        notes=(*source.notes, *headers.notes),
        warnings=(*warnings, *padding_warnings(scanned, tilings)),
        problems=tuple(problems),
    )


def _left_out(spec: ShardSpec, scenes: list[Scene]) -> list[LeftOut]:
    """Lists the splits that data.splits leaves out, and images whose labels the publisher keeps."""
    left_out = []
    for split in dict.fromkeys(scene.split for scene in scenes):
        of_split = [scene for scene in scenes if scene.split == split]
        hidden = [scene for scene in of_split if scene.mask is None]
        if spec.splits and split not in spec.splits:
            left_out.append(
                LeftOut(f"split {split!r} is not in data.splits", len(of_split), str(of_split[0].image))
            )
        elif hidden:
            why = f"split {split!r}: the publisher keeps the labels"
            left_out.append(LeftOut(why, len(hidden), str(hidden[0].image)))
    return left_out

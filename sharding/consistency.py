"""Checks over the scenes of a whole data set: splits and roles, band names, pixel types, no scene in two splits."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from d2ls.errors import nearest
from sharding.headers import ScannedScene
from sharding.raster.bands import band_text, contradiction
from sharding.raster.base import value_problem
from sharding.sources.base import Scene, Source
from sharding.spec import ShardSpec
from sharding.tiling import Tiling


def split_problems(spec: ShardSpec, splits: set[str]) -> list[str]:
    """Lists splits that are named in data.splits or data.tiling, but do not exist in the data set."""
    names = {*spec.splits, *(name for name in spec.tiling if name != "default")}
    return [
        f"{'data.splits' if name in spec.splits else 'data.tiling'} names the split {name!r}, which does not exist. "
        f"{nearest(name, sorted(splits))}"
        for name in sorted(names - splits)
    ]


def role_problems(spec: ShardSpec, scenes: Sequence[Scene]) -> tuple[list[str], list[str]]:
    """Lists roles whose split has no scenes.

    Returns:
        Problems of the roles of training (none if neither of their splits exists), and of the reported role.
    """
    splits = list(dict.fromkeys(scene.split for scene in scenes))
    roles = {"train": spec.train_split, "val": spec.val_split, "test": spec.test_split}
    texts = {
        role: f"roles.{role} names the split {split!r}, which does not exist. Name scenes for it in "
        f"data.custom.split, or another split in the roles. {nearest(split, splits)}"
        for role, split in roles.items()
        if splits and split and split not in splits
    }
    trains = {spec.train_split, spec.val_split} & {*splits}
    training = [texts[role] for role in ("train", "val") if role in texts and trains]
    return training, [texts["test"]] if "test" in texts else []


def band_name_problems(scenes: Sequence[ScannedScene], source: Source) -> list[str]:
    """Compares the bands of files with each other, for files whose band names do not contradict the recipe."""
    if source.band_order != "refuse":
        return []
    first: dict[int, ScannedScene] = {}
    for item in scenes:
        if contradiction(item.info, source.bands):
            continue
        other = first.setdefault(item.info.bands, item)
        pairs = zip(item.info.names, other.info.names, strict=True)
        if any(name and other_name and name != other_name for (_, name), (_, other_name) in pairs):
            return [
                f"{item.scene.image} has {band_text(item.info)}, {other.scene.image} has {band_text(other.info)}. "
                "Choose with data.custom.band_order: names (the names in each file) or positions"
            ]
    return []


def common_dtype(scenes: Sequence[ScannedScene], problems: list[str]) -> str:
    """Returns the pixel type of most images; appends to `problems` if there are several."""
    by_type: dict[str, list[ScannedScene]] = defaultdict(list)
    for item in scenes:
        by_type[item.info.read_as].append(item)
    if len(by_type) > 1:
        rare = min(by_type, key=lambda name: len(by_type[name]))
        problems.append(
            f"images are of several types ({', '.join(sorted(name or 'others' for name in by_type))}); "
            f"{rare} for instance: {by_type[rare][0].scene.image}. Convert them to one type"
        )
    return max(by_type, key=lambda name: len(by_type[name])) if by_type else "uint8"


def nodata_problems(nodata: float | None, dtype: str) -> list[str]:
    """Checks that the nodata value is a value of the pixel type."""
    problem = value_problem(nodata, dtype)
    return [f"data.custom.nodata: {problem}"] if problem else []


def padding_warnings(scenes: Sequence[ScannedScene], tilings: Mapping[str, Tiling]) -> list[str]:
    """Lists the splits whose tiles would be mostly padding, because their images are smaller than a tile."""
    warnings = []
    for split, tiling in tilings.items():
        places = [item.scene.region or item.info for item in scenes if item.scene.split == split]
        sizes = [(place.height, place.width) for place in places]
        if tiling.size is None or not sizes:
            continue
        filled = np.minimum(sizes, tiling.size).prod(axis=1).mean() / tiling.size**2
        if filled < 0.5:
            height, width = np.median(sizes, axis=0).astype(int)
            warnings.append(
                f"split {split}: tiles have {tiling.size} x {tiling.size} pixels, images about {height} x {width}: "
                f"{1 - filled:.0%} of the tiles is padding. Lower the size in data.tiling"
            )
    return warnings


def check_scene_splits(scenes: Sequence[ScannedScene], source: Source, problems: list[str]) -> str:
    """Returns `disjoint`, `shared` (some scene is in two splits) or `unknown` (the data set does not name its scenes).

    Appends to `problems` if scenes are shared under a protocol other than `paper`.
    """
    splits: dict[str, set[str]] = defaultdict(set)
    for item in scenes:
        if item.scene.group is None:
            return "unknown"
        splits[item.scene.group].add(item.scene.split)
    shared = {group: sorted(names) for group, names in splits.items() if len(names) > 1}
    if not shared:
        return "disjoint"
    if source.protocol == "clean":
        group, names = next(iter(shared.items()))
        problems.append(
            f"{len(shared)} scene(s) are in more than one split, for instance {group!r} in {' and '.join(names)}: "
            f"scores would be too good. {source.advice}, or set data.protocol=paper to keep "
            "the split as it was published"
        )
    return "shared"

"""The description of the user's own data in a recipe: files, classes, label codes, splits."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from d2ls.errors import ConfigError
from d2ls.labels import IGNORE, Color, LabelCodes
from sharding.raster.bands import BandOrder
from sharding.raster.base import Reading
from sharding.raster.grids import Align
from sharding.raster.reader import PLAIN
from sharding.sources.blocks import require_fold
from sharding.sources.custom_vectors import CustomArea, CustomVectors

Code = int | Color

WAYS = ("folders", "scenes", "lists", "fractions", "areas", "blocks", "fold")
"""Keys of `data.custom.split`, each a way to divide scenes."""

NAN, TRANSPARENT = "nan", "transparent"
"""Words that `ignored` may hold in addition to codes: NaN in float label images, pixels with an alpha of 0."""


@dataclass(frozen=True)
class CustomClass:
    """A class: name, display colour, raw codes (ids or colours; empty: the display colour), whether it is scored."""

    name: str
    color: Color
    codes: tuple[Code, ...] = ()
    scored: bool = True


@dataclass(frozen=True)
class CustomBlocks:
    """Square blocks of ground: side and buffer between splits in metres, share of each split, seed."""

    size_m: float
    buffer_m: float = 0.0
    fractions: Mapping[str, float] | None = None
    seed: int = 0


@dataclass(frozen=True)
class CustomFold:
    """Fold k of n is the test split, the next one the val split, the others are trained on."""

    k: int
    n: int


@dataclass(frozen=True)
class CustomSplit:
    """Division of scenes into splits. Exactly one way is given, except that blocks may have a fold.

    Attributes:
        folders: split to globs of image paths below the root.
        scenes: split to scene names or globs of them.
        lists: split to text files below the root with one image per line.
        fractions: split to its share of the scenes; shares add up to 1.
        seed: for `fractions` and `fold`.
        areas: attribute of the polygons of `CustomSpec.area` that names their split.
        blocks: blocks of ground, which divide images.
        fold: fold of the scenes, or of the blocks.
    """

    folders: Mapping[str, Sequence[str]] | None = None
    scenes: Mapping[str, Sequence[str]] | None = None
    lists: Mapping[str, Sequence[str]] | None = None
    fractions: Mapping[str, float] | None = None
    seed: int = 0
    areas: str | None = None
    blocks: CustomBlocks | None = None
    fold: CustomFold | None = None

    def __post_init__(self) -> None:
        given = [name for name in WAYS if getattr(self, name)]
        if len(given) != 1 and given != ["blocks", "fold"]:
            raise ConfigError(
                f"data.custom.split: give one of {', '.join(WAYS)}; given: {', '.join(given) or 'none of them'}"
            )
        if self.blocks and bool(self.blocks.fractions) == bool(self.fold):
            raise ConfigError("data.custom.split: blocks need one of blocks.fractions and fold")
        if self.fold:
            require_fold(self.fold.k, self.fold.n)
        if self.fractions and (
            min(self.fractions.values()) <= 0 or abs(sum(self.fractions.values()) - 1) > 1e-6
        ):
            raise ConfigError(
                f"data.custom.split.fractions: shares must be above 0 and add up to 1, got {dict(self.fractions)}"
            )

    @property
    def way(self) -> str:
        """The key that is given."""
        return next(name for name in WAYS if getattr(self, name))


@dataclass(frozen=True)
class CustomSpec:
    """Description of the user's own data.

    Attributes:
        images: globs below the root; `*` stays within a folder, `**` does not.
        masks: globs of label images, with the same wildcards: an image and a label image are a pair if their wildcards
            match the same texts. A file that fits both is a label image. Empty: all labels are vectors.
        vectors: labels of the images that have no label image; None: there are none.
        area: polygons of the labelled ground; None: all of each image.
        classes: the classes.
        split: division into splits.
        ignored: raw codes that are neither trained on nor scored; the words `nan` and `transparent` likewise.
        unused: globs of images and label images that are left out.
        scene: what makes a scene: `file` (each image is one), `folder` (the first folder below the root), or a
            regular expression on the image's path whose first group names it. None: not known.
        bands: channel names in file order.
        reading: see `Source`; also `band_order`, `align`.
    """

    images: tuple[str, ...]
    masks: tuple[str, ...]
    classes: tuple[CustomClass, ...]
    split: CustomSplit
    ignored: tuple[Code | str, ...] = ()
    unused: tuple[str, ...] = ()
    scene: str | None = None
    bands: tuple[str, ...] = ("red", "green", "blue")
    reading: Reading = PLAIN
    band_order: BandOrder = "refuse"
    align: Align = "refuse"
    license: str = "unknown"
    ground_sampling_distance: float | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    vectors: CustomVectors | None = None
    area: CustomArea | None = None

    def __post_init__(self) -> None:
        if not self.masks and not self.vectors:
            raise ConfigError("data.custom: give masks (label images), vectors, or both")
        if self.split.areas and not self.area:
            raise ConfigError(
                "data.custom.split.areas: names an attribute of data.custom.area, which is not given"
            )
        if self.scene in (None, "file", "folder"):
            return
        example = r"write file, folder, or an expression such as '^(area\d+)/'"
        try:
            groups = re.compile(self.scene).groups
        except re.error as error:
            raise ConfigError(
                f"data.custom.scene: {self.scene} is not a regular expression: {error}; {example}"
            ) from error
        if not groups:
            raise ConfigError(
                f"data.custom.scene: {self.scene} has no group in parentheses, which would name the scene; {example}"
            )


def label_codes(spec: CustomSpec) -> LabelCodes:
    """Makes the label codes of the classes.

    Raises:
        ConfigError: ids and colours mixed, or a code with two meanings.
    """
    codes: dict[Code, int] = {}
    meaning = [
        (code, index) for index, item in enumerate(spec.classes) for code in item.codes or (item.color,)
    ]
    ignored = [(code, IGNORE) for code in spec.ignored if not isinstance(code, str)]
    for code, value in [*meaning, *ignored]:
        other = codes.setdefault(code, value)
        if other != value:
            names = [f"class {spec.classes[k].name!r}" if k != IGNORE else "ignored" for k in (other, value)]
            raise ConfigError(
                f"data.custom: code {code} has two meanings, {' and '.join(names)}; "
                "take it out of one (`label_values` of a class, or data.custom.ignored)"
            )
    ids = {code: value for code, value in codes.items() if isinstance(code, int)}
    colors = {code: value for code, value in codes.items() if not isinstance(code, int)}
    if ids and colors:
        raise ConfigError(
            f"data.custom: ids {list(ids)[:3]} and colours {list(colors)[:3]} are mixed; give every class "
            "`label_values` of one kind, and data.custom.ignored too (a class without `label_values` is coded by its "
            "`color`)"
        )
    plain = LabelCodes.from_ids(ids) if ids else LabelCodes.from_colors(colors)
    return replace(plain, nan_ignored=NAN in spec.ignored, transparent_ignored=TRANSPARENT in spec.ignored)


def refuse_equal_colors(classes: Sequence[CustomClass]) -> None:
    """Refuses two classes with the same display colour.

    Raises:
        ConfigError: names both.
    """
    owners: dict[Color, str] = {}
    for item in classes:
        other = owners.setdefault(item.color, item.name)
        if other != item.name:
            raise ConfigError(
                f"data.custom.classes: {other!r} and {item.name!r} have one color {item.color}; no picture and no "
                "map could tell them apart. Give one of them another color (and the color in the files as "
                "`label_values`)"
            )

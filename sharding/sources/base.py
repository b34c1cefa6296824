"""The base class of all readers: scenes, classes, label codes, bands of a raw data set."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from d2ls.errors import ConfigError, DataError, nearest
from d2ls.labels import ClassTable, LabelCodes
from d2ls.window import Window
from sharding.files import FileRef, FileTree
from sharding.raster.bands import BandOrder
from sharding.raster.base import Reading
from sharding.raster.grids import Align
from sharding.raster.vector_labels import VectorLabels
from sharding.tiling import Tiling

Protocol = Literal["clean", "paper"]


@dataclass(frozen=True)
class Scene:
    """One image and its labels.

    Attributes:
        id: unique in its split, without the root's path (`Urban/17`).
        split: `train`, `val`, `test`, or another name from the recipe.
        image: the image file.
        mask: the label image, or vector labels; None if the publisher keeps them secret.
        group: the contiguous piece of ground (or the sequence) it belongs to, which must stay in one split; None if
            unknown.
        tags: shown but not interpreted (`area: Urban`).
        region: the part that is used, in pixels of the image; None for all of it.
        area: the labelled ground, as WKB in the CRS of the image; None for all of it.
        lossy_labels: the label image was compressed with loss, so its colours are rounded (`LabelCodes.rounded`).
    """

    id: str
    split: str
    image: FileRef
    mask: FileRef | VectorLabels | None
    group: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    region: Window | None = None
    area: bytes | None = None
    lossy_labels: bool = False


@dataclass(frozen=True)
class LeftOut:
    """Files that are not taken: the reason, their number, and one of them."""

    why: str
    count: int
    example: str


class Source(ABC):
    """A raw data set. Subclasses set the attributes and list the scenes.

    Attributes:
        name: as recipes spell it.
        classes: the K classes.
        codes: raw label codes to class ids.
        bands: channel names in file order.
        reading: settings that the images do not state themselves.
        band_order: what to do if `bands` and the names in a file differ.
        align: what to do if image and label image have different grids.
        ground_sampling_distance: metres per pixel; None if it varies or is unknown.
        license: licence of the data.
        tiling: split (or `default`) to tiling, if the protocol defines one.
        md5: published sums of the archives, by file name.
        advice: what to do if a scene is in several splits.
        missing: messages about files without a partner; filled by `scenes`.
        left_out: files that are intentionally not taken; filled by `scenes`.
        notes: what was repaired, projected or chosen; filled by `scenes`.
        extra: additional entries of the card; filled by `scenes`.
    """

    name: ClassVar[str]
    classes: ClassTable
    codes: LabelCodes
    bands: tuple[str, ...] = ("red", "green", "blue")
    reading: Reading = Reading()
    band_order: BandOrder = "positions"
    align: Align = "ignore"
    ground_sampling_distance: float | None = None
    license: str = "unknown"
    tiling: Mapping[str, Tiling] = {}
    advice: ClassVar[str] = "Move their images into one split"
    md5: ClassVar[Mapping[str, str]] = {}

    def __init__(self, root: str | Path, protocol: Protocol, access: Mapping[str, bool]) -> None:
        self.root = Path(root)
        self.protocol = protocol
        self.access = dict(access)
        self.missing: list[str] = []
        self.left_out: list[LeftOut] = []
        self.notes: list[str] = []
        self.extra: dict[str, Any] = {}
        self._nested: list[FileRef] = []

    @abstractmethod
    def scenes(self) -> Iterator[Scene]:
        """Yields the scenes, split by split, in natural order of their names.

        Raises:
            DataError: the folder does not hold this data set.
        """

    def tree(self) -> FileTree:
        """Lists the files below the root, archives included and checked."""
        tree = FileTree.open(self.root, md5=self.md5, **self.access)
        self._nested = [ref for ref in tree.files.values() if ref.member and ref.suffix == ".zip"]
        return tree

    def pairs(
        self,
        images: Mapping[str, FileRef],
        masks: Mapping[str, FileRef],
        *,
        masks_needed: bool = True,
    ) -> Iterator[tuple[str, FileRef, FileRef | None]]:
        """Joins images and label images by key; files without a partner are reported in `missing`.

        Args:
            images: key to image.
            masks: key to label image.
            masks_needed: whether an image without labels is an error; if not, it is a test image with hidden labels.
        """
        for key, image in images.items():
            if key in masks or not masks_needed:
                yield key, image, masks.get(key)
            else:
                self.missing.append(
                    f"{image}: no label image for it. Unpack the labels again, or remove the image"
                )
        self.missing += [
            f"{ref}: no image for this label image. Unpack the images again, or remove the label image"
            for key, ref in masks.items()
            if key not in images
        ]

    def nothing_found(self, expected: str) -> DataError:
        """Makes the error for a folder that does not hold this data set."""
        advice = "Point data.root at the folder that holds it."
        if self._nested:
            advice = (
                f"{self._nested[0]} is an archive in an archive, which is not read: unpack the outer one."
            )
        return DataError(f"{self.root}: no {self.name} data set here. Expected {expected}. {advice}")


def collect(keyed: Iterable[tuple[str, FileRef]]) -> dict[str, FileRef]:
    """Returns a mapping of keys to files. Of a file that is both unpacked and in an archive, the unpacked one is used.

    Raises:
        DataError: two files for one key.
    """
    files: dict[str, FileRef] = {}
    for key, ref in keyed:
        other = files.get(key)
        if other and bool(other.member) == bool(ref.member):
            raise DataError(f"{other} and {ref} are both {key}: keep one of them below data.root.")
        if other is None or other.member:
            files[key] = ref
    return files


def option(
    options: dict[str, Any], name: str, default: Any, check: Callable[[Any], bool], allowed: str
) -> Any:
    """Takes an option out of the mapping.

    Raises:
        ConfigError: a value that is not allowed.
    """
    value = options.pop(name, default)
    if not check(value):
        raise ConfigError(f"data.options.{name}: {value!r} is not possible; allowed: {allowed}")
    return value


def choice(options: dict[str, Any], name: str, default: str, allowed: Iterable[str]) -> str:
    """Takes an option that is one of a few words."""
    allowed = list(allowed)
    return str(option(options, name, default, lambda value: value in allowed, ", ".join(allowed)))


def names(
    options: dict[str, Any], name: str, default: Iterable[str], known: Iterable[str]
) -> tuple[str, ...]:
    """Takes an option that lists scenes, all of them known.

    Raises:
        ConfigError: not a list of known names.
    """
    value = options.pop(name, list(default))
    if not isinstance(value, list | tuple):
        raise ConfigError(f"data.options.{name}: {value!r} is not a list")
    known = tuple(known)
    numbers = {item.replace("_", ""): item for item in known}  # YAML reads 7_10 without quotes as 710
    value = [numbers.get(str(item), str(item)) if isinstance(item, int) else str(item) for item in value]
    for item in value:
        if item not in known:
            raise ConfigError(f"data.options.{name}: no scene {item!r}. {nearest(item, known)}")
    return tuple(value)


def refuse_unknown(options: Mapping[str, Any], known: Iterable[str], source: str) -> None:
    """Refuses options that a source does not have.

    Raises:
        ConfigError: names the nearest spelling.
    """
    known = list(known)
    for name in options:
        if name not in known:
            rest = nearest(name, known) if known else "It has no options."
            raise ConfigError(f"data.options.{name}: the source {source} has no such option. {rest}")

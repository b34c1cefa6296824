"""The headers of an image and its label image: bands, sizes, grids, types. No pixels are read."""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from d2ls.errors import DataError
from d2ls.labels import LabelCodes
from sharding.raster import Raster, RasterInfo, Reading, open_raster
from sharding.raster.bands import band_text, bands_by_name, bands_in_order, contradiction
from sharding.raster.base import FLOAT_TYPES, INTEGER_TYPES
from sharding.raster.grids import compare_grids
from sharding.raster.label_source import LabelSource, open_labels
from sharding.raster.labels import MAX_BANDS, needs_colors, needs_ids
from sharding.raster.vector_labels import VectorLabels
from sharding.sources.base import Scene, Source


@dataclass(frozen=True)
class ScannedScene:
    """A labelled scene and the headers of its files.

    Attributes:
        scene: its files.
        info: header of the image.
        bands: positions in the file of the channels that are taken.
        resampled: whether the labels are resampled to the grid of the image.
        labels: header of the label image; None for vector labels.
        pixel_metres: side of a pixel of the image in metres; None if unknown.
    """

    scene: Scene
    info: RasterInfo
    bands: tuple[int, ...] = ()
    resampled: bool = False
    labels: RasterInfo | None = None
    pixel_metres: float | None = None

    @contextmanager
    def opened(self, reading: Reading, codes: LabelCodes) -> Iterator[tuple[Raster, LabelSource]]:
        """Opens the image and its labels."""
        scene = self.scene
        assert scene.mask is not None
        codes = replace(codes, rounded=True) if scene.lossy_labels else codes
        with (
            open_raster(scene.image, reading) as image,
            open_labels(scene.mask, image, codes, resampled=self.resampled, area=scene.area) as labels,
        ):
            yield image, labels


@dataclass
class HeaderReader:
    """Reads the headers of labelled scenes and collects problems instead of raising them.

    Attributes:
        source: the data set.
        taken: channels to take, as positions in `Source.bands`.
        problems: texts of problems to fix.
        notes: texts on what is converted or ignored.
    """

    source: Source
    taken: tuple[int, ...]
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _first: Raster | None = None

    def read(self, scene: Scene) -> ScannedScene | None:
        """Reads both headers of a scene. Returns None if it has no labels or if a file cannot be read."""
        if scene.mask is None:
            return None
        try:
            with open_raster(scene.image, self.source.reading) as image:
                if isinstance(scene.mask, VectorLabels):  # the source has placed them on the image already
                    return self._compare(scene, image, None)
                with open_raster(scene.mask) as labels:
                    return self._compare(scene, image, labels)
        except DataError as error:
            self.problems.append(with_advice(error, self.source.name == "custom"))
            return None

    def _compare(self, scene: Scene, image: Raster, labels: Raster | None) -> ScannedScene:
        info = image.info
        positions = self._band_positions(image)
        resampled = self._compare_grids(image, labels) if labels else False
        self._compare_scaling(image)
        if not info.read_as:
            types = ", ".join((*INTEGER_TYPES, *FLOAT_TYPES))
            self.problems.append(
                f"{image.ref}: pixels are {info.dtype}, which is not supported; convert them to {types}"
            )
        if image.georeference.rpc:
            self.notes.append(
                f"{image.ref}: placed by RPC only; RPCs are not applied, no georeference is kept"
            )
        if labels:
            self.problems += _label_problems(scene, labels.info, bool(self.source.codes.ids))
        taken = tuple(positions[band] for band in self.taken)
        metres = image.georeference.pixel_metres(info.height, info.width)
        return ScannedScene(scene, info, taken, resampled, labels.info if labels else None, metres)

    def _band_positions(self, image: Raster) -> tuple[int, ...]:
        """Returns the positions in the file of all bands that the source names."""
        info, expected, order = image.info, self.source.bands, self.source.band_order
        in_order = bands_in_order(info, expected)
        by_name = bands_by_name(info, expected)
        positions = by_name if order == "names" else in_order
        names = ", ".join(expected)
        if order == "refuse" and in_order is not None and (text := contradiction(info, expected)):
            self.problems.append(
                f"{image.ref}: {text}. Correct data.custom.bands, or choose with data.custom.band_order: "
                "names (the names in each file) or positions (the order of data.custom.bands)"
            )
        elif positions is None and order == "names":
            self.problems.append(
                f"{image.ref}: {band_text(info)}, not named {names}, and data.custom.band_order is names"
            )
        elif positions is None:
            self.problems.append(
                f"{image.ref}: {info.bands} band(s), expected {len(expected)} ({names}); the file has "
                f"{band_text(info)}. Name all channels of the files in data.custom.bands, then choose with data.bands"
                + (", or take them by name with data.custom.band_order: names" if by_name else "")
            )
        return positions or tuple(range(len(expected)))

    def _compare_scaling(self, image: Raster) -> None:
        """Compares scale and offset tags, which are not applied, with those of the first image."""
        if self._first is None:
            self._first = image
            if image.scaling:
                self.notes.append(
                    f"{image.ref}: tags of scale and offset ({scaling_text(image)}) are not applied: data.scale and "
                    "data.max_value are values as they are stored"
                )
        elif image.scaling != self._first.scaling:
            self.problems.append(
                f"{image.ref}: tags of scale and offset ({scaling_text(image)}) differ from those of "
                f"{self._first.ref} ({scaling_text(self._first)}), so equal values mean different things. Convert all "
                "images: gdal_translate -unscale -ot Float32 IN.tif OUT.tif"
            )

    def _compare_grids(self, image: Raster, labels: Raster) -> bool:
        """Compares the grids. Returns whether the labels have to be resampled."""
        align = self.source.align
        difference = compare_grids(image, labels) if align != "ignore" else None
        if difference is None:
            if (image.info.height, image.info.width) != (labels.info.height, labels.info.width):
                self.problems.append(_different_sizes(image, labels))
            return False
        if not difference.same_ground:
            self.problems.append(
                f"{labels.ref}: {difference.text}; image {image.ref}. Correct the georeference of one of them, "
                "pair other files (data.custom.images, data.custom.masks), or set data.custom.align: ignore"
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


def scaling_text(image: Raster) -> str:
    """Lists the scale and offset tags of an image."""
    return ", ".join(f"x {scale:g} + {offset:g}" for scale, offset in dict.fromkeys(image.scaling)) or "none"


def common_pixel_metres(scanned: Sequence[ScannedScene]) -> float | None:
    """Returns the pixel size that all images state, within 1 %; None if they differ or one states none."""
    sides = [item.pixel_metres for item in scanned if item.pixel_metres]
    if not sides or len(sides) < len(scanned) or max(sides) > 1.01 * min(sides):
        return None
    return float(f"{statistics.median(sides):.6g}")


def with_advice(error: DataError, custom: bool) -> str:
    """Returns the text of a read error; adds what to do if the error does not say so.

    Args:
        error: raised while a raw file was read.
        custom: the data set is the user's own, not a published one.
    """
    text = str(error).rstrip(".")
    if "data.custom" in text or "onvert" in text:
        return f"{text}."
    return f"{text}. " + (
        "Replace the file, or name it in data.custom.unused" if custom else "Get it from the publisher again"
    )


def _different_sizes(image: Raster, labels: Raster) -> str:
    text = (
        f"{image.ref} is {image.info.height}x{image.info.width} (height x width), "
        f"its label image {labels.ref} is {labels.info.height}x{labels.info.width}"
    )
    for raster in (image, labels):
        if raster.info.orientation >= 5:
            text += (
                f". EXIF turns {raster.ref} (orientation {raster.info.orientation}); images are read as displayed, "
                "so the other one must be upright as well"
            )
    return f"{text}. Save both in one size, or pair other files (data.custom.images, data.custom.masks)"


def _label_problems(scene: Scene, info: RasterInfo, ids: bool) -> list[str]:
    if ids and (info.bands > MAX_BANDS or info.dtype.startswith("complex")):
        return [f"{scene.mask}: {needs_ids(info.bands, info.dtype)}"]
    if not ids and (info.bands not in (3, 4) or info.dtype != "uint8"):
        return [f"{scene.mask}: {needs_colors(info.bands, info.dtype)}"]
    return []

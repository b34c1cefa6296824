"""Divides the ground of images over splits: by blocks, or by polygons of labelled areas."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from d2ls.errors import DataError
from d2ls.labels import LabelCodes
from d2ls.window import Window
from sharding.files import FileRef
from sharding.raster.base import Georeference, Raster, Reading, crs_text
from sharding.raster.grids import Align, compare_grids
from sharding.raster.label_source import LabelSource, open_labels
from sharding.raster.polygon_grid import to_pixels
from sharding.raster.reader import open_raster
from sharding.raster.vector_labels import VectorLabels, vector_grid
from sharding.raster.vectors import NULL, Features, project, read_features, value_text
from sharding.sources.base import Scene
from sharding.sources.blocks import (
    Block,
    block_grid,
    deal_blocks,
    deal_folds,
    labelled_areas,
    smallest_gaps,
)
from sharding.sources.custom_spec import CustomBlocks, CustomSplit

READ = 2048
"""Side of the windows in which labels of blocks are counted."""

ROUNDING = 1e-3
"""Tolerance for rounding when the distance of two splits is compared with the buffer, as a share of the buffer."""


@dataclass(frozen=True)
class PlacedScene:
    """A scene with the georeference of its image.

    Attributes:
        scene: its files; its split is not known yet.
        place: georeference of the image.
        size: rows and columns.
        ground: outline of the image (a polygon of shapely), without what is not labelled.
    """

    scene: Scene
    place: Georeference
    size: tuple[int, int]
    ground: Any

    def window(self, shape: Any) -> Window | None:
        """Returns the window of pixels around a polygon; None if it does not reach into the image."""
        if shape.is_empty:
            return None
        box = to_pixels(np.array([shape], object), self.place.transform)[0].bounds
        left, top = max(0, int(np.floor(box[0]))), max(0, int(np.floor(box[1])))
        right, bottom = min(self.size[1], int(np.ceil(box[2]))), min(self.size[0], int(np.ceil(box[3])))
        return Window(top, left, bottom - top, right - left) if bottom > top and right > left else None


@dataclass
class Divider:
    """Cuts scenes into pieces of ground.

    Attributes:
        codes: of label images.
        reading: what is known about the images.
        align: what to do if image and label image have different grids.
        num_classes: K.
        areas: layers of polygons of labelled ground; None: all of each image.
        problems: texts of problems to fix.
        notes: texts on what was repaired, projected or chosen.
        extra: additional entries of the card.
    """

    codes: LabelCodes
    reading: Reading
    align: Align
    num_classes: int
    areas: Sequence[Features] | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def restrict(self, scenes: Sequence[Scene]) -> Iterator[Scene]:
        """Yields whole images with their labelled areas."""
        for placed in self._placed(scenes):
            if self.areas is None:
                yield placed.scene
            elif (region := placed.window(placed.ground)) is not None:
                yield replace(placed.scene, region=region, area=shapely.to_wkb(placed.ground))

    def by_attribute(self, scenes: Sequence[Scene], attribute: str) -> Iterator[Scene]:
        """Yields a piece for each polygon of the labelled areas; `attribute` of the polygon names its split."""
        assert self.areas is not None
        pieces: list[Scene] = []
        in_crs: dict[str, list[tuple[Scene, PlacedScene]]] = {}
        for placed in self._placed(scenes):
            own = list(self._polygons(placed, attribute))
            in_crs.setdefault(crs_text(placed.place.crs) or "", []).extend((piece, placed) for piece in own)
            pieces += own
        for group in in_crs.values():
            self._compare_gaps(group, 0.0, "data.custom.area")
        yield from sorted(pieces, key=lambda piece: piece.split)

    def by_blocks(self, scenes: Sequence[Scene], split: CustomSplit) -> Iterator[Scene]:
        """Yields a piece for each block of ground and image.

        Raises:
            DataError: images of several CRS, or of one in degrees; fewer blocks than splits.
        """
        rule = split.blocks
        assert rule is not None
        images = list(self._placed(scenes))
        if not images:
            return
        unit = _common_unit(images)
        bounds = tuple(shapely.total_bounds(np.array([image.ground for image in images], object)).tolist())
        blocks = block_grid(bounds, rule.size_m / unit)
        pixels = self._count(images, blocks)
        if split.fold:
            splits = deal_folds(pixels, split.fold.k, split.fold.n, rule.seed)
        else:
            splits = deal_blocks(pixels, rule.fractions or {}, rule.seed)
        areas = labelled_areas(blocks, splits, rule.buffer_m / unit)
        pieces = [
            (piece, image)
            for block, name, area in zip(blocks, splits, areas, strict=True)
            for image in images
            if name and (piece := _piece(image, block.name, name, area, block.name)) is not None
        ]
        self._note_blocks(rule, splits, pixels)
        self._compare_gaps(pieces, rule.buffer_m, "data.custom.split.blocks")
        order = list(rule.fractions or ("train", "val", "test"))
        yield from sorted((piece for piece, _ in pieces), key=lambda piece: order.index(piece.split))

    def _placed(self, scenes: Sequence[Scene]) -> Iterator[PlacedScene]:
        """Opens each image; images that cannot be read, or that no feature labels, are added to `problems`.

        So are layers none of whose features lies on an image.
        """
        reached: dict[str, bool] = {}
        for scene in scenes:
            try:
                with open_raster(scene.image, self.reading) as image:
                    placed = self._place(scene, image)
                    if isinstance(scene.mask, VectorLabels):
                        here = self._check_vectors(scene.mask, image)
                        reached |= {name: reached.get(name, False) or there for name, there in here.items()}
            except DataError as error:
                self.problems.append(str(error))
                continue
            yield placed
        self.problems += [
            f"{name}: none of its features lies on an image. Correct `crs` in data.custom.vectors, or the CRS in the "
            "file, or take the layer out"
            for name, there in reached.items()
            if not there
        ]

    def _place(self, scene: Scene, image: Raster) -> PlacedScene:
        place, size = image.georeference, (image.info.height, image.info.width)
        if self.areas is None and not place.placed:
            return PlacedScene(scene, place, size, shapely.Polygon())
        if not place.placed:
            raise DataError(
                f"{image.ref}: the image has no georeference, so data.custom.area cannot be laid over it. Give it one "
                "(gdal_translate -a_srs and -a_ullr, or the georeferencer of QGIS)"
            )
        corners = ((0, 0), (size[1], 0), (size[1], size[0]), (0, size[0]))
        ground = shapely.Polygon([place.transform @ corner for corner in corners])
        if self.areas is not None:
            shapes = np.concatenate([_projected(layer, place, image.ref) for layer in self.areas])
            ground = shapely.intersection(shapely.union_all(shapes), ground)
            if ground.is_empty:
                raise DataError(
                    f"{image.ref}: no polygon of data.custom.area lies on this image. Draw one, or name the image in "
                    "data.custom.unused"
                )
        return PlacedScene(scene, place, size, ground)

    def _check_vectors(self, labels: VectorLabels, image: Raster) -> dict[str, bool]:
        """Places the labels on an image; returns which layers reach into it."""
        grid = vector_grid(labels, image)
        self.notes += [note for note in grid.notes if note not in self.notes]
        if not grid.features and self.areas is None:
            raise DataError(
                f"{image.ref}: no feature of {labels} lies on this image. Correct `crs` in data.custom.vectors if they "
                "should; else name the image in data.custom.unused, or say with data.custom.area that there is nothing "
                "on it"
            )
        return grid.reached

    def _polygons(self, placed: PlacedScene, attribute: str) -> Iterator[Scene]:
        assert self.areas is not None
        number = 0
        for layer in self.areas:
            shapes = _projected(layer, placed.place, placed.scene.image)
            for shape, value in zip(shapes, layer.fields[attribute], strict=True):
                number += 1
                name, split = f"area{number:03d}", value_text(value)
                piece = _piece(placed, name, split, shape, name)
                if split == NULL:
                    raise DataError(
                        f"{layer.name}: a polygon without a value of {attribute!r}, which names its split. Give it "
                        "one, or delete it"
                    )
                if piece is not None:
                    yield piece

    def _count(self, images: Sequence[PlacedScene], blocks: Sequence[Block]) -> npt.NDArray[np.int64]:
        """Counts the labelled pixels of each class in each block (B K)."""
        counts = np.zeros((len(blocks), self.num_classes), np.int64)
        for item in images:
            with self._labels(item) as labels:
                for index, block in enumerate(blocks):
                    for window in _windows(item.window(block.box)):
                        ids = np.bincount(labels.read(window).ravel(), minlength=256)
                        counts[index] += ids[: self.num_classes]
        return counts

    @contextmanager
    def _labels(self, item: PlacedScene) -> Iterator[LabelSource]:
        scene = item.scene
        assert scene.mask is not None
        area = None if self.areas is None else shapely.to_wkb(item.ground)
        with open_raster(scene.image, self.reading) as image:
            resampled = (
                self.align == "resample" and isinstance(scene.mask, FileRef) and _differ(image, scene.mask)
            )
            with open_labels(scene.mask, image, self.codes, resampled=resampled, area=area) as labels:
                yield labels

    def _note_blocks(self, rule: CustomBlocks, splits: Sequence[str], pixels: npt.NDArray[np.int64]) -> None:
        totals = pixels.sum(axis=1)
        shares = []
        for name in rule.fractions or ("train", "val", "test"):
            chosen = [index for index, split in enumerate(splits) if split == name]
            shares.append(
                f"{name} {len(chosen)} ({totals[chosen].sum() / max(totals.sum(), 1):.1%} of the labels)"
            )
        if empty := sum(not split for split in splits):
            shares.append(f"{empty} without labels left out")
        self.notes.append(f"blocks of {rule.size_m:g} m: {', '.join(shares)}")
        self.extra["blocks"] = {"size_m": rule.size_m, "buffer_m": rule.buffer_m, "seed": rule.seed}

    def _compare_gaps(self, pieces: Sequence[tuple[Scene, PlacedScene]], buffer: float, key: str) -> None:
        """Measures the distances between the labelled ground of splits; one below the buffer is a problem.

        Args:
            pieces: of images in one CRS.
            buffer: in metres.
            key: of the recipe, for the texts.
        """
        if not pieces:
            return
        image = pieces[0][1]
        scale = np.array(image.place.metres_per_unit(*image.size))
        areas = [
            (piece.split, shapely.transform(shapely.from_wkb(piece.area), lambda points: points * scale))
            for piece, _ in pieces
            if piece.area
        ]
        unit = "m" if image.place.crs else "units of a CRS that the images do not name"
        for gap in smallest_gaps(areas, max(buffer * 1.5, 1.0)):
            text = (
                f"{key}: labelled ground of {gap.first} and {gap.second} is {gap.distance:.2f} {unit} apart"
            )
            if gap.distance < buffer * (1 - ROUNDING):
                self.problems.append(f"{text}, the buffer is {buffer:g} {unit}")
            elif not buffer and gap.distance == 0 and _overlap(areas, gap.first, gap.second):
                self.problems.append(
                    f"{key}: polygons of {gap.first} and {gap.second} overlap; draw them apart"
                )
            else:
                self.notes.append(text)


def read_areas(
    files: Sequence[FileRef], layer: str | None, crs: str | None, attribute: str | None
) -> list[Features]:
    """Reads the polygons of labelled ground.

    Raises:
        DataError: see `read_features`; or a layer without polygons.
    """
    layers = []
    for file in files:
        features = read_features(file.gdal, layer=layer, columns=[attribute] if attribute else [], crs=crs)
        if (shapely.get_dimensions(features.geometries) < 2).any():
            raise DataError(f"{features.name}: an area of data.custom.area is no polygon")
        layers.append(features)
    return layers


def _projected(layer: Features, place: Georeference, image: FileRef) -> npt.NDArray[np.object_]:
    if place.crs and not layer.crs:
        raise DataError(
            f"{layer.name}: the layer names no CRS. Say it with data.custom.area.crs, for instance "
            f"crs: {crs_text(place.crs)}"
        )
    if layer.crs and not place.crs:
        raise DataError(
            f"{image}: the image names no CRS, {layer.name} is in {crs_text(layer.crs)}. Write it into the image: "
            f"gdal_edit.py -a_srs EPSG:... {image}"
        )
    return project(layer.geometries, layer.crs, place.crs, layer.name)


def _piece(placed: PlacedScene, name: str, split: str, shape: Any, group: str) -> Scene | None:
    """Makes the scene of a piece of ground; returns None if it lies outside of the image."""
    ground = shapely.intersection(shape, placed.ground)
    region = placed.window(ground) if shapely.area(ground) > 0 else None
    if region is None:
        return None
    scene = placed.scene
    return replace(
        scene, id=f"{scene.id}/{name}", split=split, group=group, region=region, area=shapely.to_wkb(ground)
    )


def _windows(area: Window | None) -> Iterator[Window]:
    if area is None:
        return
    for row in range(area.row, area.row + area.height, READ):
        for column in range(area.column, area.column + area.width, READ):
            height = min(READ, area.row + area.height - row)
            yield Window(row, column, height, min(READ, area.column + area.width - column))


def _common_unit(images: Sequence[PlacedScene]) -> float:
    """Returns the metres of a unit of the CRS of all images.

    Raises:
        DataError: several CRS, a CRS in degrees, or an image without a georeference.
    """
    first = images[0]
    for image in images:
        if not image.place.placed:
            raise DataError(f"{image.scene.image}: no georeference, which data.custom.split.blocks needs")
        if image.place.crs != first.place.crs:
            raise DataError(
                f"{image.scene.image} is in {crs_text(image.place.crs)}, {first.scene.image} in "
                f"{crs_text(first.place.crs)}: data.custom.split.blocks needs one CRS. Project one of them: gdalwarp "
                f"-t_srs {crs_text(first.place.crs)} IN.tif OUT.tif"
            )
    if first.place.crs and first.place.crs.is_geographic:
        raise DataError(
            f"{first.scene.image} is in degrees ({crs_text(first.place.crs)}): data.custom.split.blocks needs metres. "
            "Project it: gdalwarp -t_srs EPSG:... (a UTM zone) IN.tif OUT.tif"
        )
    return first.place.metres_per_unit(*first.size)[0]


def _differ(image: Raster, labels: FileRef) -> bool:
    with open_raster(labels) as mask:
        return compare_grids(image, mask) is not None


def _overlap(areas: Sequence[tuple[str, Any]], first: str, second: str) -> bool:
    one, other = (shapely.union_all([a for name, a in areas if name == split]) for split in (first, second))
    return bool(shapely.area(shapely.intersection(one, other)) > 0)

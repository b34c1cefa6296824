"""A map of the splits of divided images: a picture and a GeoPackage under `preview/`."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from PIL import Image, ImageDraw

from d2ls import storage
from d2ls.display import GAP, INK, LINE, PAPER, displayable, write
from d2ls.scratch import scratch_folder
from sharding.preview import write_picture
from sharding.raster import Reading, open_raster
from sharding.raster.base import Georeference, Raster
from sharding.raster.polygon_grid import to_pixels
from sharding.raster.qgis import polygon_style
from sharding.raster.vectors import project, write_features
from sharding.sources.base import Scene

SIDE = 900
"""Longer side of an image on the picture, in pixels."""

MAX_IMAGES = 4
"""Largest number of images in the picture; the GeoPackage has all of them."""

COLORS = ((230, 60, 60), (60, 120, 255), (255, 200, 40), (60, 200, 120), (200, 90, 220), (90, 210, 230))


def write_split_map(scenes: Sequence[Scene], reading: Reading, max_value: float, uri: str) -> None:
    """Writes `preview/splits.png` and `preview/splits.gpkg` if scenes are pieces of images.

    Args:
        scenes: all scenes of the set.
        reading: what is known about the images.
        max_value: pixel value that stands for 1.0.
        uri: the shard set.
    """
    pieces = [scene for scene in scenes if scene.area]
    if not pieces:
        return
    colors = dict(zip(dict.fromkeys(piece.split for piece in pieces), COLORS * len(pieces), strict=False))
    by_image = defaultdict(list)
    for piece in pieces:
        by_image[piece.image].append(piece)
    shapes, pictures, first = [], [], None
    for number, (image, here) in enumerate(by_image.items()):
        with open_raster(image, reading) as raster:
            first = first or raster.georeference
            areas = np.array([shapely.from_wkb(piece.area) for piece in here], object)
            shapes.append(project(areas, raster.georeference.crs, first.crs))
            if number < MAX_IMAGES:
                pictures.append(_picture(raster, here, areas, max_value, colors))
    write_picture(uri, "splits", _sheet(pictures, colors))
    assert first is not None
    _write_layer(
        [piece for here in by_image.values() for piece in here], np.concatenate(shapes), first, colors, uri
    )


def _write_layer(
    pieces: Sequence[Scene],
    shapes: npt.NDArray[np.object_],
    place: Georeference,
    colors: dict[str, Any],
    uri: str,
) -> None:
    names = {"split": [piece.split for piece in pieces], "scene": [piece.id for piece in pieces]}
    fields = {name: np.array(values, object) for name, values in names.items()}
    with scratch_folder("splits") as folder:
        file = Path(folder) / "splits.gpkg"
        style = polygon_style(list(colors), list(colors.values()), "split", opacity=80)
        write_features(file, "splits", shapes, fields, place.crs, geometry_type="Unknown", style=style)
        storage.write_bytes(storage.join(uri, "preview", "splits.gpkg"), file.read_bytes())


def _picture(
    raster: Raster,
    pieces: Sequence[Scene],
    areas: npt.NDArray[np.object_],
    max_value: float,
    colors: dict[str, Any],
) -> Image.Image:
    """Draws the pieces over the image."""
    info = raster.info
    scale = SIDE / max(info.height, info.width)
    grid = (max(1, round(info.height * scale)), max(1, round(info.width * scale)))
    pixels, _ = raster.read(grid=grid)
    opaque = [band for band in range(info.bands) if band != info.alpha]
    picture = Image.fromarray(displayable(pixels[..., opaque], max_value)).convert("RGBA")
    overlay = Image.new("RGBA", picture.size)
    draw = ImageDraw.Draw(overlay)
    for piece, shape in zip(pieces, to_pixels(areas, raster.georeference.transform), strict=True):
        for part in shapely.get_parts(shape):
            if part.geom_type == "Polygon":
                outline = [(x * scale, y * scale) for x, y in part.exterior.coords]
                draw.polygon(
                    outline, fill=(*colors[piece.split], 80), outline=(*colors[piece.split], 255), width=2
                )
    return Image.alpha_composite(picture, overlay).convert("RGB")


def _sheet(pictures: Sequence[Image.Image], colors: dict[str, Any]) -> Image.Image:
    """Sets pictures beside each other over a legend."""
    width = sum(picture.width + GAP for picture in pictures) + GAP
    height = max(picture.height for picture in pictures)
    sheet = Image.new("RGB", (max(width, 400), height + 2 * GAP + LINE), PAPER)
    draw = ImageDraw.Draw(sheet)
    left = GAP
    for picture in pictures:
        sheet.paste(picture, (left, GAP))
        left += picture.width + GAP
    for number, (split, color) in enumerate(colors.items()):
        left, top = GAP + 120 * number, height + GAP + 4
        draw.rectangle((left, top, left + 12, top + 12), color, INK)
        write(draw, (left + 18, top - 2), split)
    return sheet

"""Draws the pictures of docs/qgis.md: polygons over the made orthomosaic, its map of splits, and polygons of a map.

python examples/orthomosaic.py data/town
d2ls shard own_polygons
python docs/qgis_picture.py data/town --shards data/shards/own_polygons

With `--map`, polygons of a map, made with the lines for two cores in the same page:

python docs/qgis_picture.py data/town --map map.gpkg
"""

import argparse
from pathlib import Path

import numpy as np
import rasterio
import shapely
from PIL import Image, ImageDraw
from rasterio.windows import Window

from sharding.raster.polygon_grid import to_pixels
from sharding.raster.vectors import read_features

PICTURES = Path(__file__).parent / "pictures"
COLORS = {
    "house": (255, 70, 70), "building": (255, 70, 70), "hall": (255, 0, 200),
    "road": (255, 240, 90), "water": (80, 140, 255),
    "bare": (190, 160, 220), "forest": (60, 255, 90), "field": (255, 195, 128), "unclear": (255, 255, 255),
}  # fmt: skip
SIDE, SCALE = 400, 2


def polygons_over_image(image, file, attribute, left, top, **layer):
    """Draws the polygons of a layer over a part of an image, in the colours of an attribute's values."""
    with rasterio.open(image) as raster:
        pixels = raster.read(window=Window(left, top, SIDE, SIDE)).transpose(1, 2, 0)
        features = read_features(file, columns=[attribute], **layer)
        shapes = to_pixels(features.geometries, raster.transform)
    picture = Image.fromarray(pixels).resize((SIDE * SCALE, SIDE * SCALE), Image.Resampling.LANCZOS)
    over = Image.new("RGBA", picture.size)
    draw = ImageDraw.Draw(over)
    near = shapely.intersects(shapes, shapely.box(left, top, left + SIDE, top + SIDE))
    parts, owners = shapely.get_parts(shapes[near], return_index=True)
    values = features.fields[attribute][near][owners]
    for number in np.argsort(-shapely.area(parts)):  # small ones lie in the holes of large ones
        if values[number] in COLORS:
            color = COLORS[values[number]]
            draw.polygon(corners(parts[number].exterior, left, top), (*color, 70), (*color, 255), width=2)
            for hole in parts[number].interiors:
                draw.polygon(corners(hole, left, top), (0, 0, 0, 0), (*color, 255), width=2)
    return Image.alpha_composite(picture.convert("RGBA"), over).convert("RGB")


def corners(ring, left, top):
    """Returns the corners of a ring in the picture."""
    return [tuple(corner) for corner in ((np.array(ring.coords) - (left, top)) * SCALE).tolist()]


def main(argv=None):
    """Parses the command line and draws the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("town", type=Path)
    parser.add_argument("--shards", type=Path, help="shards of the town: draws its labels and splits")
    parser.add_argument("--map", type=Path, help="polygons of a map of the town: draws them")
    options = parser.parse_args(argv)
    ortho = options.town / "ortho.tif"
    if options.shards:
        labels = polygons_over_image(ortho, options.town / "labels.gpkg", "kind", 600, 1050, layer="land")
        labels.save(PICTURES / "qgis_polygons.jpg", quality=80)
        splits = Image.open(options.shards / "preview" / "splits.png").convert("RGB")
        splits.resize((splits.width * 2 // 3, splits.height * 2 // 3)).save(
            PICTURES / "qgis_splits.jpg", quality=75
        )
    if options.map:
        polygons = polygons_over_image(ortho, options.map, "class", 50, 1060, layer="classes")
        polygons.save(PICTURES / "map_polygons.jpg", quality=80)


if __name__ == "__main__":
    main()

"""Draws the pictures of docs/qgis.md: polygons over the made orthomosaic, and its map of splits.

python examples/orthomosaic.py data/town
d2ls shard own_polygons
python docs/qgis_picture.py data/town data/shards/own_polygons
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
    "house": (255, 70, 70), "hall": (255, 0, 200), "road": (255, 240, 90), "water": (80, 140, 255),
    "bare": (190, 160, 220), "forest": (60, 255, 90), "field": (255, 195, 128), "unclear": (255, 255, 255),
}  # fmt: skip
LEFT, TOP, SIDE, SCALE = 600, 1050, 400, 2


def polygons_over_image(town):
    """Draws the outlines of a part of the layer `land` over the image, in the colour of their `kind`."""
    with rasterio.open(town / "ortho.tif") as file:
        pixels = file.read(window=Window(LEFT, TOP, SIDE, SIDE)).transpose(1, 2, 0)
        features = read_features(town / "labels.gpkg", layer="land", columns=["kind"])
        shapes = to_pixels(features.geometries, file.transform)
    picture = Image.fromarray(pixels).resize((SIDE * SCALE, SIDE * SCALE), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(picture, "RGBA")
    near = shapely.intersects(shapes, shapely.box(LEFT, TOP, LEFT + SIDE, TOP + SIDE))
    for shape, kind in zip(shapes[near], features.fields["kind"][near], strict=True):
        for part in shapely.get_parts(shape):
            outline = [tuple(p) for p in ((np.array(part.exterior.coords) - (LEFT, TOP)) * SCALE).tolist()]
            draw.polygon(outline, fill=(*COLORS[kind], 70), outline=(*COLORS[kind], 255), width=2)
    return picture


def main(argv=None):
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("town", type=Path)
    parser.add_argument("shards", type=Path)
    options = parser.parse_args(argv)
    polygons_over_image(options.town).save(PICTURES / "qgis_polygons.jpg", quality=80)
    splits = Image.open(options.shards / "preview" / "splits.png").convert("RGB")
    splits.resize((splits.width * 2 // 3, splits.height * 2 // 3)).save(
        PICTURES / "qgis_splits.jpg", quality=75
    )


if __name__ == "__main__":
    main()

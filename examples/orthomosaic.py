"""Makes an orthomosaic and its polygons, like those of a survey: `ortho.tif`, `labels.gpkg`, `area.gpkg`.

    python examples/orthomosaic.py data/town --size 4000
    python -m pipeline.shard own_polygons data.root=data/town --check

Procedural scenes stand side by side on a UTM grid of 0.5 m. `labels.gpkg` has two layers: `land`, polygons whose
attribute `kind` names the class (buildings are `house` or `hall`), and `trees`, points. Two polygons are invalid and
some are `unclear`, as in real files. `area.gpkg` has the outline of the labelled ground.
"""

import argparse
from pathlib import Path

import numpy as np
import rasterio
import rasterio.features
import shapely
from rasterio.crs import CRS
from rasterio.windows import Window

from pipeline.demo.scenery import BUILDING, FOREST, make_scene
from sharding.raster.vectors import write_features

UTM = CRS.from_epsg(32632)
PIXEL = 0.5
WEST, NORTH = 691_000.0, 5_335_000.0
KINDS = ("", "house", "road", "water", "bare", "forest", "field")
"""Attribute values of the classes of `make_scene`; the first one, the background, gets no polygon."""

HALL_M2 = 400
"""Buildings above this are halls."""


def write_orthomosaic(folder, *, size=4000, scene=500, seed=0):
    """Writes the three files; returns the labels that the polygons were drawn from (size size).

    Args:
        folder: created if it does not exist.
        size: side of the orthomosaic in pixels, a multiple of `scene`.
        scene: side of a procedural scene.
        seed: another seed, another town.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    place = rasterio.Affine(PIXEL, 0, WEST, 0, -PIXEL, NORTH)
    profile = {
        "driver": "GTiff", "height": size, "width": size, "count": 3, "dtype": "uint8", "crs": UTM, "transform": place,
        "tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "photometric": "RGB",
    }  # fmt: skip
    labels = np.empty((size, size), np.uint8)
    with rasterio.open(folder / "ortho.tif", "w", **profile) as file:
        for number in range((size // scene) ** 2):
            row, column = (scene * index for index in divmod(number, size // scene))
            pixels, ids = make_scene(1000 * seed + number, scene)
            file.write(pixels.transpose(2, 0, 1), window=Window(column, row, scene, scene))
            labels[row : row + scene, column : column + scene] = ids
    shapes, classes = _digitised(labels, place)
    write_features(folder / "labels.gpkg", "land", shapes, {"kind": _kinds(shapes, classes)}, UTM)
    trees = _trees(shapes[classes == FOREST], seed)
    write_features(folder / "labels.gpkg", "trees", trees, {}, UTM, geometry_type="Point")
    outline = shapely.box(WEST, NORTH - size * PIXEL, WEST + size * PIXEL, NORTH).buffer(-10 * PIXEL)
    write_features(folder / "area.gpkg", "area", np.array([outline]), {}, UTM)
    return labels


def _digitised(labels, place):
    """Draws polygons around the labels, with outlines that are off by about a pixel, as if drawn by hand."""
    outlines = rasterio.features.shapes(labels, (labels > 0) & (labels < len(KINDS)), transform=place)
    pairs = [(shapely.geometry.shape(shape), int(value)) for shape, value in outlines]
    shapes = shapely.simplify(np.array([shape for shape, _ in pairs]), PIXEL)
    classes = np.array([value for _, value in pairs])
    there = shapely.area(shapes) >= 4 * PIXEL**2
    shapes, classes = shapes[there], classes[there]
    bow = [(0, 0), (20, 20), (20, 0), (0, 20)]
    for number in range(2):  # clicked in the wrong order
        corners = np.add(bow, (WEST + 60 + 40 * number, NORTH - 60))
        shapes[number], classes[number] = shapely.Polygon(corners), BUILDING
    return shapes, classes


def _kinds(shapes, classes):
    kinds = np.array([KINDS[value] for value in classes], object)
    kinds[(classes == BUILDING) & (shapely.area(shapes) > HALL_M2)] = "hall"
    kinds[::97] = "unclear"
    return kinds


def _trees(woods, seed):
    """Returns some trees at the edge of the woods."""
    edge = shapely.buffer(shapely.union_all(woods), 8).boundary
    places = np.random.default_rng(seed).uniform(0, edge.length, 40)
    return shapely.line_interpolate_point(edge, np.sort(places))


def main(argv=None):
    """Parses the command line and writes the files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    write_orthomosaic(options.folder, size=options.size, seed=options.seed)
    print(f"{options.folder}: ortho.tif, labels.gpkg, area.gpkg")


if __name__ == "__main__":
    main()

"""Time and memory of polygonising a map: joined strips, compared with `rasterio.features.shapes` alone.

    python benchmarks/polygons.py [--side 20000] [--cell 60]

Each way runs in a separate process over the same map, which is made first: Voronoi cells of about `--cell` pixels
with ragged borders, a quarter of the side mirrored. `shapes` reads the raster in one piece and discards each outline.
`polygonize` also adds up the confidence under each polygon. `geopackage` also writes the polygons, as `predict
--polygons` does.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import rasterio.features
import scipy.spatial

from d2ls.labels import ClassTable
from pipeline.prediction.ground import GroundArea
from pipeline.prediction.polygonize import polygonize
from pipeline.prediction.polygons import write_polygons
from pipeline.prediction.request import PolygonOptions
from pipeline.prediction.rows import strips

CLASSES = ClassTable.create([f"class {n}" for n in range(7)], [(30 * n, 90, 200 - 20 * n) for n in range(7)])


def make_map(path: Path, side: int, cell: int) -> None:
    """Writes a map of 7 classes, and beside it a confidence band."""
    quarter = _cells(side // 4, cell)
    half = np.block([[quarter, quarter[:, ::-1]], [quarter[::-1], quarter[::-1, ::-1]]])
    confidence = np.random.default_rng(1).integers(100, 251, (512, side)).astype(np.uint8)
    profile = {"driver": "GTiff", "height": side, "width": side, "count": 1, "dtype": "uint8", "nodata": 255,
               "crs": "EPSG:32632", "transform": rasterio.Affine(0.1, 0, 4e5, 0, -0.1, 5e6), "compress": "deflate",
               "tiled": True}  # fmt: skip
    with (
        rasterio.open(path, "w", **profile) as labels,
        rasterio.open(_confidence(path), "w", **profile) as band,
    ):
        for top in range(0, side, 512):
            rows = np.arange(top, min(top + 512, side)) % len(half)
            window = rasterio.windows.Window(0, top, side, len(rows))
            labels.write(np.tile(half[rows], 2), 1, window=window)
            band.write(confidence[: len(rows)], 1, window=window)


def _cells(side: int, cell: int) -> np.ndarray:
    """Cells of random classes with ragged borders."""
    rng = np.random.default_rng(0)
    count = (side // cell) ** 2
    centres = rng.uniform(0, side, (count, 2))
    points = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(-1, 2)
    nearest = scipy.spatial.cKDTree(centres).query(points + rng.normal(0, 1.0, points.shape))[1]
    return rng.integers(0, 7, count).astype(np.uint8)[nearest].reshape(side, side)


def _confidence(path: Path) -> Path:
    return path.with_suffix(".confidence.tif")


def rows_of(path: Path):
    with rasterio.open(path) as file:
        for top in range(0, file.height, 512):
            height = min(512, file.height - top)
            yield top, file.read(1, window=rasterio.windows.Window(0, top, file.width, height))


def shapes(path: Path) -> int:
    with rasterio.open(path) as file:
        return sum(1 for _ in rasterio.features.shapes(rasterio.band(file, 1), connectivity=4))


def joined(path: Path) -> int:
    with rasterio.open(path) as file:
        pairs = strips(rows_of(path), rows_of(_confidence(path)), file.width)
        return sum(len(batch.geometries) for batch in polygonize(pairs, range(7)))


def geopackage(path: Path) -> int:
    target = path.with_suffix(".gpkg")
    with rasterio.open(path) as file:
        pairs = strips(rows_of(path), rows_of(_confidence(path)), file.width)
        ground = GroundArea(file.crs, file.transform, 0.01)
        size = (file.height, file.width)
        return write_polygons(target, pairs, size, ground, CLASSES, PolygonOptions(), tags={})


WAYS = {"shapes": shapes, "polygonize": joined, "geopackage": geopackage}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--side", type=int, default=20_000)
    arguments.add_argument("--cell", type=int, default=60)
    arguments.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments.add_argument("--map", type=Path, help=argparse.SUPPRESS)
    values = arguments.parse_args()
    if values.way:
        started = time.process_time()
        count = WAYS[values.way](values.map)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"| {values.way} | {count:,} | {time.process_time() - started:.1f} | {memory:.2f} |", flush=True
        )
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "map.tif"
        make_map(path, values.side, values.cell)
        print("| way | polygons | processor seconds | peak memory (GiB) |\n|---|---|---|---|", flush=True)
        for way in WAYS:
            subprocess.run([sys.executable, __file__, "--way", way, "--map", str(path)], check=True)


if __name__ == "__main__":
    main()

"""The cost of reading polygons as labels window by window, compared with rasterising the whole scene at once.

    python benchmarks/vectors.py [--polygons 100000] [--size 20000]

Star-shaped polygons of about 80 pixels, six classes, over one scene. `whole` is `rasterio.features.rasterize` alone,
with the geometries in memory; `windows` is what sharding does: read and repair the GeoPackage, index it, and rasterise
each window of 2048 pixels. Each runs in a separate process; time is its CPU time, memory its peak.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import rasterio.features
import shapely
from rasterio.crs import CRS

from d2ls.window import Window
from sharding.files import FileRef
from sharding.raster.base import Georeference
from sharding.raster.vector_labels import VectorGrid, VectorLabels, VectorLayer
from sharding.raster.vectors import read_features, write_features

PLACE = rasterio.Affine(0.1, 0, 500_000, 0, -0.1, 5_000_000)
UTM = CRS.from_epsg(32632)
KINDS = tuple((name, index) for index, name in enumerate("abcdef"))


def write_polygons(path, count, size):
    random = np.random.default_rng(0)
    angles = np.sort(random.uniform(0, 2 * np.pi, (count, 16)), axis=1)
    radii = random.uniform(16, 40, (count, 16))
    corners = (
        random.uniform(0, size, (count, 1, 2))
        + np.stack([np.cos(angles), np.sin(angles)], -1) * radii[..., None]
    )
    shapes = shapely.polygons(corners * [0.1, -0.1] + [500_000, 5_000_000])
    kinds = np.array(list("abcdef"), object)[random.integers(0, 6, count)]
    write_features(path, "land", shapes, {"kind": kinds}, UTM)


def whole(path, size, all_touched, shown):
    features = read_features(path, columns=["kind"])
    classes = dict(KINDS)
    values = [classes[kind] for kind in features.fields["kind"]]
    started = time.process_time()
    pixels = rasterio.features.rasterize(
        zip(features.geometries, values, strict=True), (size, size), fill=255, transform=PLACE,
        all_touched=all_touched, dtype=np.uint8,
    )  # fmt: skip
    shown.send((time.process_time() - started, peak(), np.bincount(pixels.ravel(), minlength=256)))


def windows(path, size, all_touched, shown):
    started = time.process_time()
    file = FileRef(str(path))
    labels = VectorLabels((VectorLayer(file, attribute="kind", values=KINDS),), all_touched=all_touched)
    grid = VectorGrid(labels, file, Georeference(UTM, PLACE), (size, size))
    counts = np.zeros(256, np.int64)
    for row in range(0, size, 2048):
        for column in range(0, size, 2048):
            area = Window(row, column, min(2048, size - row), min(2048, size - column))
            counts += np.bincount(grid.read(area).ravel(), minlength=256)
    shown.send((time.process_time() - started, peak(), counts))


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def measured(work, *arguments):
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=work, args=(*arguments, there))
    process.start()
    result = here.recv()
    process.join()
    return result


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--polygons", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=20_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.gpkg"
        write_polygons(path, options.polygons, options.size)
        print(
            "| | whole, s | GB | windows, s | GB | ratio | pixels that differ |\n|---|---|---|---|---|---|---|"
        )
        for all_touched in (False, True):
            seconds, memory, counts = measured(whole, path, options.size, all_touched)
            own, own_memory, own_counts = measured(windows, path, options.size, all_touched)
            name = "all_touched" if all_touched else "centres"
            differ = int(abs(counts - own_counts).sum())
            cells = (
                f"{seconds:.1f}",
                f"{memory:.2f}",
                f"{own:.1f}",
                f"{own_memory:.2f}",
                f"{own / seconds:.2f}",
            )
            print(f"| {name} | {' | '.join(cells)} | {differ} |", flush=True)


if __name__ == "__main__":
    main()

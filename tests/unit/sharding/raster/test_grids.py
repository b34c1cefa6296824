import tracemalloc

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.warp import transform

from d2ls.window import Window
from sharding.files import FileRef
from sharding.raster import grids, open_raster
from sharding.raster.grids import AlignedLabels, compare_grids
from tests.geodata.tiffs import CRS, PIXEL, PLACE, ids, pixels, tif


def opened(path):
    return open_raster(FileRef(str(path)))


def giant(path, side, corner, place):
    """A sparse TIFF of side x side pixels with values in its upper left corner only."""
    layout = {"tiled": True, "blockxsize": 256, "blockysize": 256, "sparse_ok": True, "compress": "deflate"}
    size = {"height": side, "width": side, "count": 1, "dtype": "uint8", "crs": CRS, "transform": place}
    with rasterio.open(path, "w", driver="GTiff", **size, **layout) as file:
        file.write(corner, 1, window=((0, corner.shape[0]), (0, corner.shape[1])))
    return path


def test_labels_of_a_giant_image_are_resampled_by_windows(tmp_path):
    image = giant(tmp_path / "i.tif", 20_000, ids(), PLACE)
    labels = giant(tmp_path / "l.tif", 40_000, ids(), PLACE @ Affine.scale(0.5))
    with opened(image) as first, opened(labels) as second:
        assert f"pixels of {PIXEL} m and {PIXEL / 2} m" in compare_grids(first, second).text
        tracemalloc.start()
        result, covered = AlignedLabels(second, first).read(Window(0, 0, 512, 512), colors=False)
        assert tracemalloc.get_traced_memory()[1] < 40e6
        tracemalloc.stop()
    assert covered.all()
    np.testing.assert_array_equal(result[:64, :96], ids()[1::2, 1::2])


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", "EPSG:32615"])
def test_each_pixel_takes_the_label_at_its_centre_in_any_crs(tmp_path, crs):
    """Compared with a label image that holds the position of each of its pixels."""
    height, width = 60, 80
    middle = transform(CRS, crs, [PLACE.c + 15], [PLACE.f - 12])
    step = PIXEL * (1e-5 if crs == "EPSG:4326" else 1.0)
    place = Affine(step, 0, middle[0][0] - 60 * step, 0, -step, middle[1][0] + 60 * step)
    number = np.arange(120 * 120, dtype=np.uint16).reshape(120, 120)
    image = tif(tmp_path / "i.tif", pixels(height=height, width=width))
    labels = tif(tmp_path / "l.tif", number, crs=crs, transform=place)
    area = Window(7, 11, 30, 40)
    with opened(image) as first, opened(labels) as second:
        result, covered = AlignedLabels(second, first).read(area, colors=False)
    for row, column in np.random.default_rng(0).integers(0, (area.height, area.width), (50, 2)):
        x, y = PLACE @ (area.column + column + 0.5, area.row + row + 0.5)
        (x,), (y,) = transform(CRS, crs, [x], [y])
        at = ~place @ (x, y)
        inside = 0 <= at[0] < 120 and 0 <= at[1] < 120
        assert covered[row, column] == inside
        if inside:
            assert result[row, column] == number[int(at[1]), int(at[0])]
    assert covered.any()


def test_an_alpha_channel_that_is_opaque_in_a_part_is_kept_in_all(tmp_path, monkeypatch):
    monkeypatch.setattr(grids, "_BLOCK", 192 * 16)
    alpha = np.full_like(ids(), 255)
    alpha[100:, 50] = 0
    tif(tmp_path / "i.tif", pixels())
    for name, bands in (
        ("l", [ids(), alpha]),
        ("c", [*pixels(1), alpha]),
        ("o", [ids(), np.full_like(alpha, 255)]),
    ):
        tif(tmp_path / f"{name}.tif", np.stack(bands))
        with opened(tmp_path / "i.tif") as image, opened(tmp_path / f"{name}.tif") as labels:
            result, _ = AlignedLabels(labels, image).read(Window(0, 0, 128, 192), colors=name == "c")
        expected = bands[0] if name == "o" else np.stack(bands, axis=-1)
        np.testing.assert_array_equal(result, expected)

"""Polygons read by window equal `rasterio.features.rasterize` over the whole scene."""

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize

from d2ls.window import Window
from sharding.raster import polygon_grid
from sharding.raster.polygon_grid import PolygonGrid

SIZE = 150, 170
PLACES = {
    "north up": Affine(0.3, 0, 500_000.1, 0, -0.3, 5_000_000.7),
    "south up": Affine(0.5, 0, 7, 0, 0.5, 11),
    "turned": Affine.translation(400, 900) @ Affine.rotation(17) @ Affine.scale(2, -2),
}


def stars(seed, count=40, reach=60):
    """Returns star-shaped polygons with corners at any position, in pixels; some lie outside of the scene."""
    random = np.random.default_rng(seed)
    angles = np.sort(random.uniform(0, 2 * np.pi, (count, 9)), axis=1)
    radii = random.uniform(0.1, 1, (count, 9)) * random.uniform(0.3, reach, (count, 1))
    centres = random.uniform(-20, 190, (count, 1, 2))
    return shapely.polygons(centres + np.stack([np.cos(angles), np.sin(angles)], axis=-1) * radii[..., None])


def boxes(seed, count=40):
    """Returns rectangles on corners of pixels, like those of a vectorised raster."""
    random = np.random.default_rng(seed)
    corners = np.sort(random.integers(-5, 180, (count, 2, 2)), axis=1)
    return shapely.box(*corners.reshape(count, 4).T)


def placed(shapes, place):
    a, b, c, d, e, f = tuple(place)[:6]
    return shapely.transform(
        shapes, lambda p: np.stack([a * p[:, 0] + b * p[:, 1] + c, d * p[:, 0] + e * p[:, 1] + f], 1)
    )


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), shapes=st.sampled_from([stars, boxes]), place=st.sampled_from(list(PLACES)),
    all_touched=st.booleans(), block=st.integers(16, 200),
    window=st.tuples(st.integers(0, 140), st.integers(0, 160), st.integers(1, 150), st.integers(1, 170)),
)  # fmt: skip
def test_a_window_has_the_pixels_of_the_whole(seed, shapes, place, all_touched, block, window):
    if shapes is boxes and place != "south up" and all_touched:
        return  # sides of pixels are hit or missed by rounding
    polygons = placed(shapes(seed), PLACES[place])
    values = np.random.default_rng(seed).integers(0, 255, len(polygons)).astype(np.uint8)
    whole = rasterize(
        zip(polygons, values.tolist(), strict=True), SIZE, fill=255, transform=PLACES[place],
        all_touched=all_touched, dtype=np.uint8,
    )  # fmt: skip
    row, column, height, width = window
    height, width = min(height, SIZE[0] - row), min(width, SIZE[1] - column)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(polygon_grid, "BLOCK", block)
        patch.setattr(polygon_grid, "CACHED_BLOCKS", 3)
        grid = PolygonGrid(polygons, values, PLACES[place], *SIZE, fill=255, all_touched=all_touched)
        part = grid.read(Window(row, column, height, width))
        np.testing.assert_array_equal(part, whole[row : row + height, column : column + width])
        np.testing.assert_array_equal(grid.read(Window(0, 0, *SIZE)), whole)


def test_a_pixel_is_the_same_in_every_window_also_where_outlines_run_through_corners():
    polygons = shapely.transform(stars(3, reach=200), np.round)
    values = np.arange(len(polygons)).astype(np.uint8)
    grid = PolygonGrid(polygons, values, Affine.identity(), *SIZE, fill=255, all_touched=True)
    whole = grid.read(Window(0, 0, *SIZE))
    for row, column in ((0, 0), (3, 100), (77, 31)):
        area = Window(row, column, 64, 64)
        np.testing.assert_array_equal(grid.read(area), whole[row : row + 64, column : column + 64])


def test_later_polygons_lie_over_earlier_ones():
    values = np.array([1, 2], np.uint8)
    polygons = shapely.box([0, 2], [0, 2], [4, 6], [4, 6])
    grid = PolygonGrid(polygons, values, Affine.identity(), 8, 8, fill=9)
    pixels = grid.read(Window(0, 0, 8, 8))
    assert [pixels[1, 1], pixels[3, 3], pixels[5, 5], pixels[7, 7]] == [1, 2, 2, 9]


def test_polygons_outside_of_the_scene_are_not_counted():
    polygons = shapely.box([0, 20], [0, 0], [4, 24], [4, 4])
    grid = PolygonGrid(polygons, np.array([1, 2], np.uint8), Affine.identity(), 8, 8, fill=9)
    assert grid.count == 1
    assert grid.touches(Window(3, 3, 2, 2))
    assert not grid.touches(Window(5, 5, 3, 3))

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2ls.errors import ConfigError
from d2ls.labels import IGNORE
from d2ls.window import Window
from sharding.tiling import Tiling, pad_image, place_labels, tiles

lengths = st.integers(1, 60)


@st.composite
def tilings(draw, **fixed):
    size = draw(st.integers(4, 40))
    return Tiling(size, draw(st.integers(max(1, size // 3), size)), **fixed)


def cover(height, width, tiling):
    """Counts how often each pixel is labelled, with the functions that cut samples."""
    seen = np.zeros((height, width), int)
    number = np.arange(height * width).reshape(height, width)
    for tile in tiles(height, width, tiling):
        inside = (slice(tile.inside.row, tile.inside.row + tile.inside.height),
                  slice(tile.inside.column, tile.inside.column + tile.inside.width))  # fmt: skip
        ids = place_labels((number[inside] % 7).astype(np.uint8), tile)
        assert ids.shape == (tile.window.height, tile.window.width)
        kept = ids[: tile.inside.height, : tile.inside.width] != IGNORE
        assert (ids != IGNORE).sum() == kept.sum()
        np.testing.assert_array_equal(
            ids[: tile.inside.height, : tile.inside.width][kept], number[inside][kept] % 7
        )
        seen[inside] += kept
    return seen


@settings(max_examples=40)
@given(lengths, lengths, tilings(once=True), st.sampled_from(["shift", "pad"]))
def test_evaluation_labels_every_pixel_exactly_once(height, width, tiling, edge):
    assert (cover(height, width, Tiling(tiling.size, tiling.stride, edge=edge, once=True)) == 1).all()


@settings(max_examples=40)
@given(lengths, lengths, tilings(once=False), st.sampled_from(["shift", "pad"]))
def test_training_labels_every_pixel(height, width, tiling, edge):
    assert (cover(height, width, Tiling(tiling.size, tiling.stride, edge=edge, once=False)) >= 1).all()


@settings(max_examples=40)
@given(lengths, lengths, tilings())
def test_shift_keeps_tiles_inside_where_the_scene_is_large_enough(height, width, tiling):
    for tile in tiles(height, width, tiling):
        if height >= tiling.size and width >= tiling.size:
            assert tile.window == tile.inside


def test_whole_scenes_and_dropped_edges():
    whole = list(tiles(30, 50, Tiling()))
    assert [tile.window for tile in whole] == [Window(0, 0, 30, 50)]
    dropped = [tile.window for tile in tiles(30, 50, Tiling(20, edge="drop"))]
    assert dropped == [Window(0, 0, 20, 20), Window(0, 20, 20, 20)]
    assert list(tiles(10, 50, Tiling(20, edge="drop"))) == []


def test_a_stride_that_leaves_pixels_out_is_refused():
    with pytest.raises(ConfigError, match=r"data\.tiling: stride 65 must be between 1 and the size 64"):
        Tiling(64, 65)
    with pytest.raises(ConfigError, match="needs a size"):
        Tiling(None, 8)


@pytest.mark.parametrize("bands", [1, 3, 7])
def test_padding_is_zero_or_mirrored(bands):
    image = np.random.default_rng(0).integers(1, 255, (5, 6, bands)).astype(np.uint8)
    tile = next(iter(tiles(5, 6, Tiling(16))))
    zero, mirror = (pad_image(image, tile, padding) for padding in ("zero", "mirror"))
    assert zero.shape == mirror.shape == (16, 16, bands)
    assert not zero[5:].any()
    assert not zero[:, 6:].any()
    np.testing.assert_array_equal(mirror[5:10, :6], image[::-1])
    np.testing.assert_array_equal(mirror[:5, 6:12], image[:, ::-1])

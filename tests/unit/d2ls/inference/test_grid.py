import itertools

import numpy as np
import pytest

from d2ls.errors import ConfigError
from d2ls.inference.sliding_window import Grid, blend, overlap_pixels, spans

CASES = list(itertools.product((1, 7, 31, 32, 33, 50, 64, 100, 257), (1, 8, 32), (0.0, 0.25, 0.5, 0.7)))


@pytest.mark.parametrize(("length", "window", "share"), CASES)
def test_windows_cover_everything_with_the_overlap(length: int, window: int, share: float) -> None:
    overlap = overlap_pixels(window, share)
    result = spans(length, window, overlap)
    assert result[0][0] == 0
    assert result[-1][1] == length
    assert {stop - start for start, stop in result} == {min(window, length)}
    for (start, stop), (following, _) in itertools.pairwise(result):
        assert start < following
        assert stop - following >= overlap


@pytest.mark.parametrize(("length", "window", "share"), CASES)
def test_weights_sum_to_one_at_every_pixel(length: int, window: int, share: float) -> None:
    result = spans(length, window, overlap_pixels(window, share))
    total = np.zeros(length)
    for (start, stop), weights in zip(result, blend(result), strict=True):
        assert (weights >= 0).all()
        total[start:stop] += weights
    np.testing.assert_allclose(total, 1, atol=2e-7)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_all_windows_but_the_last_lie_on_the_stride_of_the_encoder(share: float) -> None:
    starts = [start for start, _ in spans(1003, 128, overlap_pixels(128, share))]
    assert all(start % 32 == 0 for start in starts[:-1])
    assert starts[-1] == 1003 - 128


def test_a_window_has_weight_zero_at_its_inner_edges_and_one_at_the_image_border() -> None:
    first, second = blend([(0, 32), (16, 48)])
    assert first[0] == second[-1] == 1
    assert (first[-4:] == 0).all()
    assert (second[:4] == 0).all()
    assert (np.diff(second) >= 0).all()


@pytest.mark.parametrize(
    ("height", "width", "window", "overlap"), [(0, 5, 4, 1), (5, 5, 4, 4), (5, 5, 4, -1)]
)
def test_an_impossible_grid_is_refused(height: int, width: int, window: int, overlap: int) -> None:
    with pytest.raises(ConfigError):
        Grid(height, width, window, overlap)


@pytest.mark.parametrize(("window", "overlap"), [(0, 0.2), (8, 1.0), (8, -0.1)])
def test_an_impossible_overlap_is_refused(window: int, overlap: float) -> None:
    with pytest.raises(ConfigError):
        overlap_pixels(window, overlap)


def test_bands_partition_the_rows() -> None:
    grid = Grid(100, 40, 32, 20)
    bands = [grid.band(index) for index in range(len(grid.rows))]
    assert bands[0][0] == 0
    assert bands[-1][1] == 100
    assert all(a[1] == b[0] for a, b in itertools.pairwise(bands))
    for index, (top, _) in enumerate(grid.rows):
        first = grid.first_row_reaching(index)
        assert grid.rows[first][1] > top
        assert first == 0 or grid.rows[first - 1][1] <= top

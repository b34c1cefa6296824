import numpy as np
import numpy.typing as npt
import pytest
import torch

from d2ls.errors import DataError, NonFiniteOutputError
from d2ls.inference import Band, Grid, Predictor, Progress, stitch
from tests.inference_stubs import LocalStub, model_info

Image = npt.NDArray[np.uint8]


def picture(height: int, width: int, bands: int = 3, seed: int = 0) -> Image:
    return np.random.default_rng(seed).integers(0, 256, (height, width, bands), dtype=np.uint8)


def whole(image: Image) -> npt.NDArray[np.float32]:
    predictor = Predictor(LocalStub(), model_info())
    return predictor.window_probabilities(image[None])[0].numpy()


def run(image: Image, grid: Grid, first_band: int = 0, batch_size: int = 3, valid=None) -> list[Band]:
    predictor = Predictor(LocalStub(), model_info())
    bands: list[Band] = []
    stitch(
        lambda window: (image[window.slices], None if valid is None else valid[window.slices]),
        predictor.window_probabilities,
        bands.append,
        grid,
        4,
        batch_size=batch_size,
        first_band=first_band,
        keep_probabilities=True,
    )
    return bands


@pytest.mark.parametrize(
    ("height", "width", "window", "overlap"),
    [(100, 131, 32, 8), (100, 131, 32, 16), (97, 64, 32, 24), (20, 131, 32, 8), (131, 20, 32, 8), (32, 32, 32, 8),
     (5, 7, 32, 8), (33, 33, 32, 28)],
)  # fmt: skip
def test_windows_of_a_short_sighted_network_give_the_one_window_result(
    height: int, width: int, window: int, overlap: int
) -> None:
    image = picture(height, width)
    bands = run(image, Grid(height, width, window, overlap))
    expected = whole(image)
    result = np.concatenate([band.probabilities for band in bands], axis=1)
    np.testing.assert_allclose(result, expected, atol=1e-6)
    labels = np.concatenate([band.labels for band in bands])
    clear = np.diff(np.sort(expected, axis=0), axis=0)[-1] > 1e-5
    assert (labels == expected.argmax(0))[clear].all()


def test_without_overlap_only_the_seams_differ() -> None:
    image = picture(64, 64)
    result = np.concatenate([band.probabilities for band in run(image, Grid(64, 64, 32, 0))], axis=1)
    differs = np.abs(result - whole(image)).max(0) > 1e-6
    assert differs[30:34].any()
    differs[30:34] = False
    differs[:, 30:34] = False
    assert not differs.any()


@pytest.mark.parametrize("overlap", [0, 8, 24])
def test_a_map_begun_at_any_band_ends_the_same(overlap: int) -> None:
    image, grid = picture(120, 70), Grid(120, 70, 32, overlap)
    complete = run(image, grid)
    for start in range(len(grid.rows)):
        again = run(image, grid, first_band=start)
        assert [band.index for band in again] == list(range(start, len(grid.rows)))
        for one, two in zip(complete[start:], again, strict=True):
            np.testing.assert_array_equal(one.labels, two.labels)
            np.testing.assert_array_equal(one.probabilities, two.probabilities)


def test_batches_continue_over_row_ends_and_are_the_same_from_any_band() -> None:
    """The rounding of a network depends on the batch size, so a resumed map must use the same batches."""
    image, grid = picture(120, 120), Grid(120, 120, 32, 8)
    predictor = Predictor(LocalStub(), model_info())
    seen: list[bytes] = []

    def predict(pixels: npt.NDArray[np.generic]) -> torch.Tensor:
        seen.append(pixels.tobytes())
        return predictor.window_probabilities(pixels)

    read = lambda window: (image[window.slices], None)  # noqa: E731
    stitch(read, predict, lambda _: None, grid, 4, batch_size=3)
    complete = list(seen)
    assert len(grid.columns) % 3
    assert len(complete) == -(-len(grid) // 3)
    for start in range(len(grid.rows)):
        seen.clear()
        stitch(read, predict, lambda _: None, grid, 4, batch_size=3, first_band=start)
        assert seen == complete[-len(seen) :]


def test_batches_do_not_change_the_map() -> None:
    image, grid = picture(80, 90), Grid(80, 90, 32, 8)
    one, seven = run(image, grid, batch_size=1), run(image, grid, batch_size=7)
    for a, b in zip(one, seven, strict=True):
        np.testing.assert_array_equal(a.labels, b.labels)


def test_pixels_without_data_get_no_label_and_empty_windows_are_skipped() -> None:
    image = picture(100, 100)
    valid = np.zeros((100, 100), bool)
    valid[60:, 55:] = True
    valid[70, 70] = False
    bands = run(image, Grid(100, 100, 32, 8), valid=valid)
    labels = np.concatenate([band.labels for band in bands])
    np.testing.assert_array_equal(labels == 255, ~valid)
    probabilities = np.concatenate([band.probabilities for band in bands], axis=1)
    assert (probabilities[:, ~valid] == 0).all()
    inside = valid.copy()
    inside[:64, :] = inside[:, :59] = False  # two pixels from windows that were not looked at
    np.testing.assert_allclose(probabilities[:, inside], whole(image)[:, inside], atol=1e-6)


def test_no_data_at_all_needs_no_network() -> None:
    def never(_: object) -> torch.Tensor:
        raise AssertionError("the network was called")

    bands: list[Band] = []
    valid = np.zeros((32, 32), bool)
    read = lambda window: (picture(32, 32), valid)  # noqa: E731
    stitch(read, never, bands.append, Grid(50, 50, 32, 4), 4)
    assert all((band.labels == 255).all() for band in bands)


@pytest.mark.parametrize("failing", ["read", "write", "predict"])
def test_an_error_in_any_part_is_raised_and_nothing_hangs(failing: str) -> None:
    def part(name: str, value: object) -> object:
        if name == failing:
            raise DataError(f"{name} broke")
        return value

    with pytest.raises(DataError, match=f"{failing} broke"):
        stitch(
            lambda window: part("read", (picture(32, 32), None)),
            lambda pixels: part("predict", torch.full((len(pixels), 4, 32, 32), 0.25)),
            lambda band: part("write", None),
            Grid(100, 100, 32, 8),
            4,
        )


@pytest.mark.parametrize("place", [(slice(None), 3, 40), (2, 63, 60)])
def test_an_output_that_is_not_a_number_ends_the_map(place) -> None:
    """All classes of a pixel, or one of them, in the last rows too."""
    image, bands = picture(64, 64), []

    def predict(pixels):
        block = torch.full((len(pixels), 4, 64, 64), 0.25)
        block[(0, *place)] = torch.nan
        return block

    with pytest.raises(NonFiniteOutputError, match="rows 0 to 64: the network's output is not finite"):
        stitch(lambda window: (image[window.slices], None), predict, bands.append, Grid(64, 64, 64, 0), 4)
    assert bands == []


def test_progress_counts_windows() -> None:
    seen: list[Progress] = []
    image, grid = picture(80, 90), Grid(80, 90, 32, 8)
    predictor = Predictor(LocalStub(), model_info())
    read = lambda window: (image[window.slices], None)  # noqa: E731
    stitch(read, predictor.window_probabilities, lambda _: None, grid, 4, progress=seen.append)
    assert seen[-1] == (len(grid), len(grid))
    assert [p.done for p in seen] == sorted(p.done for p in seen)

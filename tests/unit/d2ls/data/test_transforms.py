import os
import subprocess
import sys

import numpy as np
import pytest

from d2ls.data.mosaic import Mosaic
from d2ls.data.transforms import Augmentation, Transforms, cut, draw_crop
from d2ls.errors import ConfigError
from d2ls.window import Window
from tests.shards import coordinates


class Array:
    """An image in memory that records the requested windows."""

    def __init__(self, image, mask):
        self.pixels, self.labels = image, mask
        self.height, self.width = mask.shape
        self.asked = []

    def image(self, window):
        self.asked.append(window)
        return self.pixels[window.slices]

    def mask(self, window):
        return self.labels[window.slices]


def plane(height, width):
    """Row and column as float32, so that any resampling of them can be read back; the mask holds its own row block."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    return np.stack([rows, columns, np.zeros_like(rows)], axis=2)


def augmented(number, augmentation, height=96, width=80):
    rng = np.random.default_rng(number)
    image = plane(height, width)
    mask = ((image[..., 0] // 8 + image[..., 1] // 8) % 4).astype(np.uint8)
    picture = Array(image, mask)
    crop = draw_crop(picture, augmentation, rng)
    made = cut(picture, crop, augmentation.crop_size, np.dtype(np.float32))
    return Transforms(augmentation, 255.0)(*made, rng), crop


@pytest.mark.parametrize("scale", [(0.5, 0.5), (0.75, 1.5), (2.0, 2.0)])
def test_image_and_labels_stay_in_step(scale):
    """Each pixel of the image says where it came from: its label must be the label of that place."""
    augmentation = Augmentation(32, scale, horizontal_flip=0.5, vertical_flip=0.5, quarter_turns=0.8)
    for number in range(60):
        (image, mask), _ = augmented(number, augmentation)
        inside = mask != 255
        rows, columns = image[..., 0][inside], image[..., 1][inside]
        sure = (abs((rows + 0.5) % 8 - 4) < 3) & (
            abs((columns + 0.5) % 8 - 4) < 3
        )  # off the edges of label blocks
        expected = ((rows + 0.5) // 8 + (columns + 0.5) // 8) % 4
        assert sure.sum() > 100
        assert np.array_equal(mask[inside][sure], expected[sure].astype(np.uint8))


def test_zoom_and_flips_are_what_they_say():
    (image, _), crop = augmented(0, Augmentation(32, (2.0, 2.0)))
    assert (crop.source.height, crop.source.width) == (16, 16)
    assert np.allclose(np.diff(image[2:-2, :, 0], axis=0), 0.5)
    assert np.allclose(np.diff(image[:, 2:-2, 1], axis=1), 0.5)
    (flipped, _), _ = augmented(0, Augmentation(32, (2.0, 2.0), horizontal_flip=1.0))
    assert np.array_equal(flipped, image[:, ::-1])


def test_flips_are_independent_of_each_other():
    augmentation = Augmentation(16, horizontal_flip=0.5, vertical_flip=0.5, quarter_turns=0.0)
    seen = []
    for number in range(400):
        (image, _), _ = augmented(number, augmentation)
        seen.append((image[0, 0, 0] > image[-1, 0, 0], image[0, 0, 1] > image[0, -1, 1]))
    table = np.bincount([2 * int(v) + int(h) for v, h in seen], minlength=4) / 400
    assert table == pytest.approx([0.25] * 4, abs=0.08)


def test_no_more_is_decoded_than_the_crop_needs():
    image, mask = coordinates(96, 80)
    for number in range(20):
        picture = Array(image, mask)
        augmentation = Augmentation(32, (0.8, 1.6), max_class_fraction=0.5)
        crop = draw_crop(picture, augmentation, np.random.default_rng(number))
        cut(picture, crop, 32, np.dtype(np.uint8))
        assert picture.asked == [crop.source]
        assert crop.source.height <= 40


def test_samples_smaller_than_the_crop_are_padded_without_labels():
    augmentation = Augmentation(64, (1.0, 1.0))
    for number in range(10):
        (image, mask), crop = augmented(number, augmentation, 40, 100)
        assert image.shape == (64, 64, 3)
        assert (crop.source.height, crop.source.width) == (40, 64)
        assert (mask != 255).sum() == 40 * 64
        assert (image[mask == 255] == 0).all()


def test_a_crop_of_mostly_one_class_is_drawn_again():
    mask = np.zeros((200, 200), np.uint8)
    mask[:, 150:] = 1
    picture = Array(np.zeros((200, 200, 3), np.uint8), mask)

    def shares(limit):
        augmentation = Augmentation(40, max_class_fraction=limit)
        crops = [draw_crop(picture, augmentation, np.random.default_rng(n)).source for n in range(200)]
        ones = np.array([picture.mask(window).mean() for window in crops])
        return (np.maximum(ones, 1 - ones) >= 0.75).mean()

    assert shares(None) > 0.8
    assert shares(0.75) < 0.4


def test_ignored_pixels_do_not_count_as_a_class():
    mask = np.full((64, 64), 255, np.uint8)
    mask[:2, :2] = [[0, 1], [1, 0]]
    picture = Array(np.zeros((64, 64, 3), np.uint8), mask)
    augmentation = Augmentation(64, max_class_fraction=0.75)
    assert draw_crop(picture, augmentation, np.random.default_rng(0)).source == Window(0, 0, 64, 64)


def test_a_mosaic_shows_a_window_of_each_and_decodes_only_what_is_seen():
    pictures = []
    for number in range(4):
        mask = np.full((64, 80), number, np.uint8)
        pictures.append(Array(np.full((64, 80, 3), 50 * number + 10, np.uint8), mask))
    mosaic = Mosaic(pictures, np.random.default_rng(1))
    image, mask = mosaic.image(Window(0, 0, 64, 80)), mosaic.mask(Window(0, 0, 64, 80))
    assert np.array_equal(image[..., 0], 50 * mask + 10)
    y, x = np.count_nonzero(mask[:, 0] == 0), np.count_nonzero(mask[0] == 0)
    assert 16 <= y <= 48
    assert 20 <= x <= 60
    assert np.unique(mask).tolist() == [0, 1, 2, 3]
    for picture in pictures:
        picture.asked.clear()
    mosaic.image(Window(0, 0, 4, 4))
    assert [len(picture.asked) for picture in pictures] == [1, 0, 0, 0]


def test_a_small_partner_leaves_a_border_without_labels():
    pictures = [Array(np.full((h, h, 3), 9, np.uint8), np.zeros((h, h), np.uint8)) for h in (64, 8, 64, 64)]
    mosaic = Mosaic(pictures, np.random.default_rng(0))
    mask, image = mosaic.mask(Window(0, 0, 64, 64)), mosaic.image(Window(0, 0, 64, 64))
    assert (mask == 255).any()
    assert np.array_equal(mask == 255, image[..., 0] == 0)
    for row, column in np.ndindex(mask.shape):  # also where a crop holds nothing but border
        assert np.array_equal(mosaic.image(Window(row, column, 1, 1))[0, 0], image[row, column])


def test_colour_changes_scale_with_the_depth():
    """Images of 16 bits (float32, raw values) get the same changes as images of 8 bits."""
    eight = np.random.default_rng(0).integers(60, 120, (16, 16, 4)).astype(np.uint8)
    deep = eight.astype(np.float32) * np.float32(65535 / 255)
    mask = np.zeros((16, 16), np.uint8)
    augmentation = Augmentation(16, brightness_contrast=1.0, sharpen=1.0)
    for number in range(5):
        first = Transforms(augmentation, 255.0)(eight, mask, np.random.default_rng(number))[0]
        second = Transforms(augmentation, 65535.0)(deep, mask, np.random.default_rng(number))[0]
        assert not np.array_equal(first, eight)
        assert second.dtype == np.float32
        assert np.abs(second / 257 - first).mean() < 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_size": 0},
        {"scale": (1.5, 0.5)},
        {"scale": (0.0, 1.0)},
        {"scale": ()},
        {"scale": (1.0, 1.2, 1.5)},
        {"scale_mode": "best"},
        {"max_class_fraction": 0.0},
        {"mosaic": 1.5},
        {"sharpen": -0.1},
    ],
)
def test_impossible_values_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong)).split("_")[0]):
        Augmentation(**wrong)


def test_a_choice_of_scales():
    augmentation = Augmentation(scale=(0.75, 1.0, 1.25), scale_mode="choice")
    rng = np.random.default_rng(0)
    assert {augmentation.draw_scale(rng) for _ in range(60)} == {0.75, 1.0, 1.25}


def test_importing_albumentations_uses_no_network_and_leaves_no_trace():
    code = (
        "import os, urllib.request\n"
        "def refuse(*a, **k): raise SystemExit('network')\n"
        "urllib.request.urlopen = refuse\n"
        "from d2ls.data.transforms import import_albumentations\n"
        "import_albumentations()\n"
        "assert 'NO_ALBUMENTATIONS_UPDATE' not in os.environ\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "NO_ALBUMENTATIONS_UPDATE"}
    assert (
        subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], env=environment).returncode
        == 0
    )


def test_float_values_beyond_the_range_are_kept_whether_colours_change_or_not():
    """Evaluation and prediction keep them too. Inside the range the result is that of an image without such values."""
    augmentation = Augmentation(crop_size=8, brightness_contrast=0.5, sharpen=0.3, vertical_flip=0.5)
    transforms = Transforms(augmentation, 1.0)
    inside = np.random.default_rng(0).random((8, 8, 3), np.float32)
    image, mask = inside.copy(), np.zeros((8, 8), np.uint8)
    image[1, 2], image[3, 4], inside[1, 2], inside[3, 4] = 1.75, -0.5, 1, 0
    kept = 0
    for number in range(20):
        made = transforms(image, mask, np.random.default_rng(number))[0]
        plain = transforms(inside, mask, np.random.default_rng(number))[0]
        beyond = made - plain
        assert beyond.max() == pytest.approx(0.75, abs=1e-6)
        assert beyond.min() == pytest.approx(-0.5, abs=1e-6)
        assert (np.abs(beyond) > 1e-6).sum() == 6, "nothing else differs"
        kept += np.allclose(np.sort(made.ravel()), np.sort(image.ravel()), atol=1e-6)
    assert 0 < kept < 20, "some are only flipped, some change colours"


def test_colours_of_float_images_change_within_their_scale_and_nan_stays():
    scale = ((-25.0, 0.0), (0.0, 0.5))
    transforms = Transforms(Augmentation(crop_size=8, brightness_contrast=1.0), 1.0, scale)
    image = np.random.default_rng(0).random((8, 8, 2), np.float32) * (25, 0.5) + (-25, 0)
    image = image.astype(np.float32)
    image[2, 3, 0] = np.nan
    made = transforms(image, np.zeros((8, 8), np.uint8), np.random.default_rng(1))[0]
    assert made.dtype == np.float32
    assert np.argwhere(np.isnan(made)).tolist() == [[2, 3, 0]]
    assert not np.allclose(made, image, equal_nan=True)
    for band, (low, high) in enumerate(scale):
        assert low - 1e-4 <= np.nanmin(made[..., band]) <= np.nanmax(made[..., band]) <= high + 1e-4

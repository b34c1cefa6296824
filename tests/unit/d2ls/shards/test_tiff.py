import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2ls.errors import ShardError
from d2ls.shards.tiff import open_tiff
from d2ls.window import Window
from tests.shards import picture, tiff

KINDS = [{"compress": "none", "predictor": 1}, {"compress": "zstd", "predictor": 2}]
IMAGE = picture(0, 50, 70, 4, "uint16")[0]
FILES = [tiff(IMAGE, **kind) for kind in KINDS]


class Log:
    """Reads a file and notes how much was asked for."""

    def __init__(self, content):
        self.content, self.count = content, 0

    def __call__(self, offset, length):
        assert offset + length <= len(self.content)
        self.count += length
        return self.content[offset : offset + length]


@settings(max_examples=30)
@given(st.data(), st.sampled_from(range(len(KINDS))))
def test_any_window_of_any_kind(data, kind):
    top, left = data.draw(st.integers(0, 49)), data.draw(st.integers(0, 69))
    height, width = data.draw(st.integers(1, 50 - top)), data.draw(st.integers(1, 70 - left))
    content = FILES[kind]
    layout = open_tiff(Log(content), len(content))
    assert (layout.height, layout.width, layout.channels, layout.dtype.name) == (50, 70, 4, "uint16")
    result = layout.read_window(Log(content), Window(top, left, height, width))
    assert np.array_equal(result, IMAGE[top : top + height, left : left + width])
    assert result.dtype.isnative


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_only_the_touched_blocks_are_read(kind):
    content = FILES[kind]
    layout = open_tiff(Log(content), len(content))
    log = Log(content)
    layout.read_window(log, Window(2, 3, 4, 4))
    assert log.count <= max(layout.lengths)
    whole = Log(content)
    layout.read_window(whole, Window(0, 0, 50, 70))
    assert whole.count > 4 * log.count


@pytest.mark.parametrize(
    "options",
    [
        {"compress": "lzw"},
        {"compress": "deflate"},
        {"interleave": "band"},
        {"BIGTIFF": "YES"},
        {"endianness": "big"},
        {"tiled": False},
    ],
)
def test_other_kinds_are_left_to_others(options):
    content = tiff(IMAGE, **options)
    assert open_tiff(Log(content), len(content)) is None


def test_no_tiff_at_all():
    assert open_tiff(Log(b"nonsense" * 10), 80) is None
    assert open_tiff(Log(b"II*\0" + b"\xff" * 4), 8) is None


@pytest.mark.parametrize("kind", [1])
def test_a_damaged_block_is_an_error(kind):
    content = bytearray(FILES[kind])
    layout = open_tiff(Log(bytes(content)), len(content))
    start = layout.offsets[0]
    content[start : start + layout.lengths[0]] = bytes(layout.lengths[0])
    with pytest.raises(ShardError, match="block 0"):
        layout.read_window(Log(bytes(content)), Window(0, 0, 4, 4))


@pytest.mark.parametrize("kind", [{"compress": "none"}, {"compress": "zstd"}])
def test_windows_of_float_images_keep_every_bit(kind):
    image = np.random.default_rng(0).normal(size=(50, 70, 2)).astype(np.float32)
    image[3:9, 20:40] = np.nan
    content = tiff(image, predictor=1, **kind)
    layout = open_tiff(Log(content), len(content))
    result = layout.read_window(Log(content), Window(2, 15, 30, 50))
    np.testing.assert_array_equal(result.view(np.uint32), image[2:32, 15:65].view(np.uint32))

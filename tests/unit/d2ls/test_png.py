import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from d2ls.errors import ShardError
from d2ls.loader.decode import PixelFormat, read_image, read_mask
from d2ls.loader.records import Record
from d2ls.png import grey_png, open_png, shortened, unfiltered
from tests.shards import picture

NONE, SUB, UP, ADAPTIVE = (
    [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE],
    [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_SUB],
    [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP],
    [cv2.IMWRITE_PNG_COMPRESSION, 3],
)
KINDS = [(filters, channels) for filters in (NONE, SUB, UP, ADAPTIVE) for channels in (1, 3, 4)]


class Bytes:
    """A member held in memory."""

    name = "image"

    def __init__(self, bytes_, height=50, width=70):
        self.bytes = bytes_
        numbers = dict.fromkeys(Record._fields, 0)
        self.record = Record(**{**numbers, "image_suffix": "png", "height": height, "width": width})

    def content(self):
        return self.bytes


def encoded(channels, options, dtype="uint8"):
    image = picture(channels, 50, 70, channels, dtype)[0]
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]
    return image, cv2.imencode(".png", np.ascontiguousarray(image[:, :, order]), options)[1].tobytes()


@settings(max_examples=60)
@given(st.data(), st.sampled_from(KINDS))
def test_any_window_with_any_filter(data, kind):
    filters, channels = kind
    image, content = encoded(channels, filters)
    top, left = data.draw(st.integers(0, 49)), data.draw(st.integers(0, 69))
    height, width = data.draw(st.integers(1, 50 - top)), data.draw(st.integers(1, 70 - left))
    layout = PixelFormat(channels, "uint8", 255.0, 4)
    found = read_image(Bytes(content), layout, (top, left, height, width))
    assert np.array_equal(found, image[top : top + height, left : left + width])


def test_mixed_filters_that_stand_alone():
    image, content = encoded(3, SUB)
    png = open_png(content)
    data = png.inflate(50).copy()
    rows = slice(0, 50, 3)
    data[rows] = np.concatenate([np.zeros((17, 1), np.uint8), image[rows].reshape(17, -1)], axis=1)
    assert np.array_equal(unfiltered(png, data, 5), image[5:])


def test_deep_images_are_decoded_whole():
    image, content = encoded(1, NONE, "uint16")
    assert open_png(content) is None
    found = read_image(Bytes(content), PixelFormat(1, "uint16", 65535.0, 4), (3, 4, 5, 6))
    assert np.array_equal(found, image[3:8, 4:10])


@pytest.mark.parametrize("options", [SUB, ADAPTIVE])
def test_damage_above_the_last_row_is_seen(options):
    _, content = encoded(3, options)
    broken = bytearray(content)
    broken[120:160] = bytes(40)
    with pytest.raises(ShardError, match="decoded"):
        read_image(Bytes(bytes(broken)), PixelFormat(3, "uint8", 255.0, 4), (30, 0, 15, 70))
    with pytest.raises(ShardError, match="decoded"):
        read_image(Bytes(content[: len(content) // 3]), PixelFormat(3, "uint8", 255.0, 4), (30, 0, 15, 70))


@pytest.mark.parametrize(
    ("channels", "dtype", "width"), [(4, "uint8", 70), (3, "uint16", 70), (3, "uint8", 69)]
)
def test_another_picture_than_the_index_says(channels, dtype, width):
    _, content = encoded(3, SUB)
    for box in ((0, 0, 20, 20), (0, 0, 50, 20)):
        with pytest.raises(ShardError, match="card and index say"):
            read_image(Bytes(content, width=width), PixelFormat(channels, dtype, 255.0, 4), box)


@pytest.mark.parametrize("size", [(1, 1), (50, 70), (257, 300)])
def test_labels_as_any_reader_sees_them(size):
    labels = picture(1, *size, 1, "uint8")[0][:, :, 0] // 40
    labels[0, 0] = 255
    content = grey_png(labels)
    assert np.array_equal(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED), labels)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), labels)
    png = open_png(content)
    assert np.array_equal(png.inflate(size[0])[:, 1:], labels)


def test_a_changed_byte_of_labels_is_seen():
    png = open_png(grey_png(np.tile(np.arange(7, dtype=np.uint8), (90, 10))))
    broken = bytearray(png.packed)
    broken[-1] ^= 1  # the checksum of the stream
    with pytest.raises(ShardError, match="decoded"):
        png._replace(packed=bytes(broken)).inflate(90)


def label_member(content, height=50, width=70):
    member = Bytes(content, height, width)
    member.name = "mask"
    return member


def filtered_below(labels):
    """Labels whose first row has no filter and whose last one has."""
    png = open_png(grey_png(labels))
    rows = png.inflate(len(labels)).copy()
    rows[-1, 0] = 1
    rows[-1, 2:] = np.diff(labels[-1])
    return shortened(png, rows)


LABELS = np.repeat(np.arange(50, dtype=np.uint8)[:, None] % 4, 70, axis=1)
LAYOUT = PixelFormat(3, "uint8", 255.0, 4)
WAYS = {
    "ours": grey_png,
    "a filter in the last row": filtered_below,
    "OpenCV": lambda labels: cv2.imencode(".png", labels)[1].tobytes(),
}


@pytest.mark.parametrize("way", WAYS)
def test_labels_however_they_were_written(way):
    assert np.array_equal(read_mask(label_member(WAYS[way](LABELS)), LAYOUT), LABELS)


def enlarged(content):
    """The height in the header with its highest bit set."""
    return content[:20] + bytes([content[20] | 0x40]) + content[21:]


DAMAGE = {
    "cut off": lambda content: content[: len(content) // 2],
    "a changed byte": lambda content: content[:-18] + bytes([content[-18] ^ 1]) + content[-17:],
    "a huge height": enlarged,
    "another size": lambda content: grey_png(LABELS[:40]),
    "sixteen bits": lambda content: cv2.imencode(".png", LABELS.astype(np.uint16))[1].tobytes(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_labels_are_an_error_that_speaks_of_them(damage):
    with pytest.raises(ShardError, match="the mask"):
        read_mask(label_member(DAMAGE[damage](grey_png(LABELS))), LAYOUT)

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from d2ls.errors import ShardError
from d2ls.shards.codecs import decode_image, decode_mask
from d2ls.shards.png import grey_png, read_grey_png
from tests.shards import picture

LABELS = np.repeat(np.arange(50, dtype=np.uint8)[:, None] % 4, 70, axis=1)


def opencv(values, *options):
    return cv2.imencode(".png", values, options)[1].tobytes()


@pytest.mark.parametrize("size", [(1, 1), (50, 70), (257, 300)])
def test_labels_as_any_reader_sees_them(size):
    labels = picture(1, *size, 1, "uint8")[0][:, :, 0] // 40
    labels[0, 0] = 255
    content = grey_png(labels)
    assert np.array_equal(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED), labels)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), labels)
    assert np.array_equal(read_grey_png(content, size), labels)
    assert np.array_equal(decode_mask(content), labels)


@pytest.mark.parametrize("filters", [cv2.IMWRITE_PNG_FILTER_NONE, cv2.IMWRITE_PNG_FILTER_SUB])
def test_labels_that_others_wrote(filters):
    content = opencv(LABELS, cv2.IMWRITE_PNG_FILTER, filters)
    assert np.array_equal(decode_mask(content, LABELS.shape), LABELS)


def enlarged(content):
    """The height in the header with its highest bit set."""
    return content[:20] + bytes([content[20] | 0x40]) + content[21:]


DAMAGE = {
    "cut off": lambda content: content[: len(content) // 2],
    "a changed byte": lambda content: content[:-18] + bytes([content[-18] ^ 1]) + content[-17:],
    "a huge height": enlarged,
    "another size": lambda content: grey_png(LABELS[:40]),
    "sixteen bits": lambda content: opencv(LABELS.astype(np.uint16)),
    "colours": lambda content: opencv(np.stack([LABELS] * 3, axis=2)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_labels_are_an_error_that_speaks_of_them(damage):
    with pytest.raises(ShardError, match="the mask"):
        decode_mask(DAMAGE[damage](grey_png(LABELS)), LABELS.shape)


@pytest.mark.parametrize(
    ("expected", "window"),
    [((50, 70, 4, "uint8"), None), ((50, 70, 3, "uint16"), None), ((50, 69, 3, "uint8"), (0, 0, 20, 20))],
)
def test_another_picture_than_the_index_says(expected, window):
    content = opencv(picture(3, 50, 70)[0])
    with pytest.raises(ShardError, match="card and index say"):
        decode_image(content, "png", expected=expected, window=window)


@pytest.mark.parametrize(
    ("suffix", "content"), [("png", b"nonsense"), ("tif", b"nonsense"), ("tif", b"II*\0nonsense")]
)
def test_what_is_no_image(suffix, content):
    with pytest.raises(ShardError, match="the image cannot be decoded"):
        decode_image(content, suffix)

import numpy as np
import pytest

from d2ls.errors import ConfigError, ShardError
from d2ls.shards.codecs import decode_image, decode_mask
from d2ls.shards.png import grey_png
from d2ls.window import Window
from sharding.codecs import Codec
from tests.trees import blocks, texture

CODECS = [
    Codec("png"),
    Codec("webp"),
    Codec("tif"),
    Codec("tif", compression="zstd"),
    Codec("jpg", quality=98),
]


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: f"{codec.name}-{codec.compression}")
def test_pixels_survive_whole_and_by_window(codec):
    image = texture(1, 300, 280)
    content = codec.encode(image)
    assert content == codec.encode(image.copy())
    whole, part = (
        decode_image(content, codec.name),
        decode_image(content, codec.name, window=Window(250, 8, 40, 260)),
    )
    np.testing.assert_array_equal(part, whole[250:290, 8:268])
    if codec.lossless:
        np.testing.assert_array_equal(whole, image)
    else:
        assert 0 < np.abs(whole.astype(int) - image).mean() < 6


@pytest.mark.parametrize(("name", "bands", "dtype"), [
    ("png", 1, "uint16"), ("png", 4, "uint8"), ("tif", 7, "uint16"), ("tif", 2, "uint8"), ("tif", 4, "uint8"),
])  # fmt: skip
def test_other_depths_and_band_counts(name, bands, dtype):
    image = texture(2, 70, 90, bands, dtype)
    codec = Codec(name)
    codec.check(bands, dtype)
    np.testing.assert_array_equal(decode_image(codec.encode(image), name), image)


def test_what_a_codec_cannot_hold_is_refused_with_those_that_can():
    with pytest.raises(ConfigError, match=r"webp cannot hold 4 band\(s\) of uint8; use png or tif"):
        Codec("webp").check(4, "uint8")
    with pytest.raises(ConfigError, match="'gif' is none of png"):
        Codec("gif")
    with pytest.raises(ConfigError, match=r"level: 12 is outside 0\.\.9 of png"):
        Codec("png", level=12)
    with pytest.raises(ConfigError, match=r"level: an uncompressed tif has none; add .*compression=zstd"):
        Codec("tif", level=3)


def test_labels_are_lossless():
    ids = blocks(1, 61, 67, (0, 5, 255, 254))
    np.testing.assert_array_equal(decode_mask(grey_png(ids)), ids)
    with pytest.raises(ShardError, match="the mask is"):
        decode_mask(Codec("png").encode(texture(1, 8, 8)))
    for suffix in ("png", "tif"):
        with pytest.raises(ShardError, match="the image cannot be decoded"):
            decode_image(b"nothing", suffix)

import io
import tracemalloc
import zipfile

import cv2
import numpy as np
import pytest
import rasterio
from PIL import Image, ImageOps

from d2ls.errors import DataError
from d2ls.window import Window
from sharding.files import FileRef, FileTree
from sharding.raster import open_raster, read_labels
from tests.trees import save, texture


def reading(path, window=None):
    with open_raster(FileRef(str(path))) as raster:
        return raster.pixels(window)


@pytest.mark.parametrize(("suffix", "bands", "dtype"), [
    ("png", 1, "uint8"), ("png", 3, "uint8"), ("png", 4, "uint8"), ("png", 1, "uint16"), ("png", 3, "uint16"),
    ("tif", 1, "uint8"), ("tif", 3, "uint16"), ("tif", 6, "uint16"), ("bmp", 3, "uint8"),
])  # fmt: skip
def test_pixels_come_as_they_were_written(tmp_path, suffix, bands, dtype):
    image = texture(1, 40, 30, bands, dtype)
    path = tmp_path / f"a.{suffix}"
    if suffix == "tif" or bands in (1, 3):
        save(path, image)
    else:
        cv2.imwrite(str(path), image[..., [2, 1, 0, 3]])
    with open_raster(FileRef(str(path))) as raster:
        assert (raster.info.height, raster.info.width, raster.info.bands, raster.info.dtype) == (
            40,
            30,
            bands,
            dtype,
        )
        np.testing.assert_array_equal(raster.pixels(), image)
        window = Window(7, 3, 11, 13)
        np.testing.assert_array_equal(raster.pixels(window), image[7:18, 3:16])


def test_palette_images_are_indices_as_ids_and_colours_as_colours(tmp_path):
    indices = np.random.default_rng(0).integers(0, 3, (20, 24)).astype(np.uint8)
    palette = np.array([(9, 8, 7), (200, 0, 1), (0, 255, 3)], np.uint8)
    save(tmp_path / "a.png", indices, palette.tolist())
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", height=20, width=24, count=1, dtype="uint8",
                       photometric="palette") as file:  # fmt: skip
        file.write(indices, 1)
        file.write_colormap(1, {k: (*color.tolist(), 255) for k, color in enumerate(palette)})
    for name in ("a.png", "a.tif"):
        with open_raster(FileRef(str(tmp_path / name))) as raster:
            assert raster.info.palette
            np.testing.assert_array_equal(read_labels(raster, None, colors=False), indices)
            np.testing.assert_array_equal(
                read_labels(raster, Window(2, 3, 5, 6), colors=True), palette[indices[2:7, 3:9]]
            )


@pytest.mark.parametrize(("depth", "top"), [(1, 1), (2, 3), (4, 15)])
def test_grey_png_of_few_bits_gives_its_values(tmp_path, depth, top):
    from PIL import PngImagePlugin  # noqa: F401

    values = np.random.default_rng(0).integers(0, top + 1, (9, 16)).astype(np.uint8)
    path = tmp_path / "a.png"
    path.write_bytes(grey_png(values, depth))
    with open_raster(FileRef(str(path))) as raster:
        np.testing.assert_array_equal(read_labels(raster, None, colors=False), values)


def grey_png(values, depth):
    """Writes a grey PNG of 1, 2 or 4 bits by hand: libraries spread the values."""
    import struct
    import zlib

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    bits = ((values[..., None] >> np.arange(depth - 1, -1, -1)) & 1).reshape(len(values), -1)
    rows = b"".join(b"\0" + bytes(row) for row in np.packbits(bits.astype(np.uint8), axis=1))
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_viewers_do(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.jpg", "a.png", "a.webp"):
        path = tmp_path / name
        Image.fromarray(texture(3, 20, 40)).save(path, exif=exif)
        with open_raster(FileRef(str(path))) as raster, Image.open(path) as image:
            shown = np.asarray(ImageOps.exif_transpose(image))
            assert (raster.info.height, raster.info.width) == shown.shape[:2]
            assert np.abs(raster.pixels().astype(int) - shown).max() <= 2  # JPEG decoders differ
            assert raster.plain_as(name[2:]) == (orientation == 1 and name != "a.webp")


def test_members_of_archives_are_read_in_place(tmp_path):
    image = texture(2, 40, 30)
    save(tmp_path / "x" / "a.png", image)
    save(tmp_path / "x" / "a.tif", image)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a.png", "a.tif"):
            archive.write(tmp_path / "x" / name, f"in/{name}")
    tree = FileTree.open(tmp_path / "x.zip")
    for ref in tree.files.values():
        with open_raster(ref) as raster:
            np.testing.assert_array_equal(raster.pixels(Window(3, 4, 20, 20)), image[3:23, 4:24])


def test_damaged_files_are_named(tmp_path):
    save(tmp_path / "a.png", texture(1, 60, 60))
    save(tmp_path / "a.tif", texture(1, 60, 60))
    for name in ("a.png", "a.tif"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(DataError, match=f"{name}: .*(damaged|readable)"):
            reading(tmp_path / name)
    (tmp_path / "b.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"b\.jpg: not a readable image"):
        reading(tmp_path / "b.jpg")
    with pytest.raises(DataError, match=r"image format '\.gif' is not read here"):
        reading(tmp_path / "c.gif")
    with pytest.raises(DataError, match=r"d\.png: cannot be read: No such file"):
        reading(tmp_path / "d.png")


def test_a_small_file_that_claims_a_huge_image_is_refused(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(stream, "PNG")
    content = bytearray(stream.getvalue())
    content[16:24] = (100_000).to_bytes(4, "big") * 2
    import zlib

    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"bomb\.png: .*tiled TIFF"):
        reading(tmp_path / "bomb.png")


def test_a_giant_tiff_is_read_by_windows(tmp_path):
    path = tmp_path / "giant.tif"
    shape = {"height": 50_000, "width": 50_000, "count": 3, "dtype": "uint8"}
    block = texture(1, 256, 256)
    with rasterio.open(path, "w", driver="GTiff", tiled=True, blockxsize=256, blockysize=256, sparse_ok=True,
                       compress="deflate", **shape) as file:  # fmt: skip
        file.write(block.transpose(2, 0, 1), window=((49_664, 49_920), (25_600, 25_856)))
    tracemalloc.start()
    with open_raster(FileRef(str(path))) as raster:
        np.testing.assert_array_equal(raster.pixels(Window(49_664, 25_600, 256, 256)), block)
        assert not raster.pixels(Window(0, 0, 512, 512)).any()
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()

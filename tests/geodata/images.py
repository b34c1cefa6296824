"""Rows about images: grids, orientation, bands, pixels without data, pixel types."""

import zipfile

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.rpc import RPC
from rasterio.warp import transform as project

from d2ls.data import Augmentation, TrainingLoader
from d2ls.errors import DataError
from d2ls.labels import IGNORE
from d2ls.shards import ShardSet
from pipeline.sharding.run import check_raw_data
from sharding.raster.scene import open_scene
from tests.geodata import case
from tests.geodata.tiffs import CRS, HEIGHT, PIXEL, PLACE, WIDTH, ids, pixels, tif
from tests.geodata.world import pair, problems, recipe, samples, shard

LOADING = {
    "global_batch_size": 1,
    "seed": 0,
    "augmentation": Augmentation(crop_size=96, vertical_flip=0.5, brightness_contrast=1.0, sharpen=1.0),
}
SOUTH_UP = PLACE @ Affine(1, 0, 0, 0, -1, HEIGHT)
"""Rows from the south to the north over the same ground."""


def picture(path, **options):
    """Writes the image of the rows through Pillow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels().transpose(1, 2, 0)).save(path, **options)


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@case("image and label image on one grid", "taken as they are")
def _(tmp_path):
    pair(tmp_path)
    assert problems(tmp_path) == ""
    shard(tmp_path)
    image, labels, meta = samples(tmp_path)["train_a"]
    np.testing.assert_array_equal(image, pixels().transpose(1, 2, 0))
    np.testing.assert_array_equal(labels, ids())
    assert meta["crs"] == CRS


@case(
    "label image south-up over the ground of a north-up image",
    "refused with the numbers; `align: resample` turns it",
)
def _(tmp_path):
    pair(tmp_path)
    tif(tmp_path / "labels" / "a.tif", ids()[::-1], transform=SOUTH_UP)
    assert "north-up and south-up. data.custom.align: resample" in problems(tmp_path)
    shard(tmp_path, align="resample")
    np.testing.assert_array_equal(samples(tmp_path)["train_a"][1], ids())


@case(
    "label image shifted by 0.5 pixel",
    "refused with pixels and metres; `align: resample` takes the nearest label",
)
def _(tmp_path):
    pair(tmp_path)
    tif(tmp_path / "labels" / "a.tif", ids(), transform=PLACE @ Affine.translation(0.5, 0))
    assert "labels start 0.50 pixels = 0.30 m across" in problems(tmp_path)


@case(
    "label image south-up, image without a georeference",
    "refused; `align: ignore` pairs pixels as they are stored",
)
def _(tmp_path):
    pair(tmp_path, crs=None, transform=None)
    assert problems(tmp_path) == ""
    tif(tmp_path / "labels" / "a.tif", ids()[::-1], transform=SOUTH_UP)
    assert "the label image is stored south-up" in problems(tmp_path)
    assert problems(tmp_path, align="ignore") == ""


@case("label image shifted by less than 0.1 pixel", "taken as they are")
def _(tmp_path):
    pair(tmp_path)
    tif(tmp_path / "labels" / "a.tif", ids(), transform=PLACE @ Affine.translation(0.05, -0.05))
    assert problems(tmp_path) == ""


@case("label image 141 km away", "refused with the distance, whatever the value of `align`")
def _(tmp_path):
    pair(tmp_path)
    tif(tmp_path / "labels" / "a.tif", ids(), transform=Affine.translation(1e5, 1e5) @ PLACE)
    for align in ("refuse", "resample"):
        assert "other ground, 235702.26 pixels = 141.4 km away" in problems(tmp_path, align=align)


@case(
    "label image at twice the pixel size over the same ground",
    "refused with both; `align: resample` resamples it",
)
def _(tmp_path):
    coarse = ids(height=HEIGHT // 2, width=WIDTH // 2)
    pair(tmp_path)
    tif(tmp_path / "labels" / "a.tif", coarse, transform=PLACE @ Affine.scale(2))
    assert "pixels of 0.6 m and 1.2 m" in problems(tmp_path)
    shard(tmp_path, align="resample", data={"tiling": {"default": {"size": 64}}})
    expected = np.kron(coarse, np.ones((2, 2))).astype(np.uint8)
    for _, labels, meta in samples(tmp_path).values():
        row, column, height, width = meta["window"]
        np.testing.assert_array_equal(labels, expected[row : row + height, column : column + width])


@case("label image in another CRS", "refused with both; `align: resample` projects it")
def _(tmp_path):
    corners = [PLACE @ corner for corner in ((0, 0), (WIDTH, HEIGHT))]
    (west, east), (north, south) = project(CRS, "EPSG:4326", *zip(*corners, strict=True))
    pair(tmp_path)
    place = Affine((east - west) / WIDTH, 0, west, 0, (south - north) / HEIGHT, north)
    tif(tmp_path / "labels" / "a.tif", ids(), crs="EPSG:4326", transform=place)
    assert f"CRS {CRS} and EPSG:4326" in problems(tmp_path)
    shard(tmp_path, align="resample")
    assert (samples(tmp_path)["train_a"][1] == ids()).mean() > 0.9


@case(
    "label image in degrees beyond the 180th meridian (179 to 181), image in UTM",
    "with `align: resample` both sides are labelled",
)
def _(tmp_path):
    (x,), (y,) = project("EPSG:4326", "EPSG:32660", [179.9999999], [9])
    place = Affine(10, 0, x - 960, 0, -10, y + 640)
    pair(tmp_path, crs="EPSG:32660", transform=place)
    degrees = Affine(1e-4, 0, 179.98, 0, -1e-4, 9.02)
    tif(tmp_path / "labels" / "a.tif", ids(height=400, width=400), crs="EPSG:4326", transform=degrees)
    shard(tmp_path, align="resample")
    assert (samples(tmp_path)["train_a"][1] != IGNORE).all()


@case(
    "label image on another datum (NAD83, WGS 84)",
    "refused with a note that only the datum differs; `align: resample`",
)
def _(tmp_path):
    pair(tmp_path)
    tif(tmp_path / "labels" / "a.tif", ids(), crs="EPSG:32614")
    assert "EPSG:32614, which differ in the datum only" in problems(tmp_path)
    shard(tmp_path, align="resample")
    np.testing.assert_array_equal(samples(tmp_path)["train_a"][1], ids())


@case(
    "label image that covers a part of the image", "with `align: resample` the rest of the image is ignored"
)
def _(tmp_path):
    pair(tmp_path)
    tif(tmp_path / "labels" / "a.tif", ids()[:, 32:], transform=PLACE @ Affine.translation(32, 0))
    assert "labels start 32.00 pixels = 19.20 m across" in problems(tmp_path)
    shard(tmp_path, align="resample")
    labels = samples(tmp_path)["train_a"][1]
    assert (labels[:, :32] == IGNORE).all()
    np.testing.assert_array_equal(labels[:, 32:], ids()[:, 32:])


@case("photograph that EXIF turns, mask drawn as displayed", "taken as displayed")
def _(tmp_path):
    for name, orientation in (("a", 6), ("b", 3)):
        picture(tmp_path / "images" / f"{name}.png", exif=exif(orientation))
    turned = np.rot90(pixels().transpose(1, 2, 0), -1)
    tif(tmp_path / "labels" / "a.tif", ids(height=WIDTH, width=HEIGHT))
    tif(tmp_path / "labels" / "b.tif", ids())
    assert problems(tmp_path, images="images/*.png") == ""
    shard(tmp_path, images="images/*.png")
    np.testing.assert_array_equal(samples(tmp_path)["train_a"][0], turned)
    np.testing.assert_array_equal(samples(tmp_path)["train_b"][0], pixels().transpose(1, 2, 0)[::-1, ::-1])


@case("photograph that EXIF turns, mask drawn as stored", "refused by the sizes, which names EXIF")
def _(tmp_path):
    picture(tmp_path / "images" / "a.jpg", exif=exif(6))
    tif(tmp_path / "labels" / "a.tif", ids())
    assert "EXIF turns" in problems(tmp_path, images="images/*.jpg")


@case("TIFF with an orientation tag other than 1", "refused: GDAL does not turn it")
def _(tmp_path):
    pair(tmp_path)
    Image.fromarray(pixels().transpose(1, 2, 0)).save(tmp_path / "images" / "a.tif", tiffinfo={274: 6})
    assert "stored turned or mirrored (orientation 6)" in problems(tmp_path)
    with pytest.raises(DataError, match="Save it upright"):
        open_scene(tmp_path / "images" / "a.tif")


def _tag(*names):
    def tag(file):
        file.colorinterp = [ColorInterp[name] for name in names]

    return tag


@case("image tagged blue, green, red", "refused; `band_order` decides: names or positions")
def _(tmp_path):
    pair(tmp_path, after=_tag("blue", "green", "red"))
    text = "band 1 is 'blue' in the file and 'red' in the recipe, band 3 is 'red' in the file and 'blue' in the recipe"
    assert text in problems(tmp_path)
    assert "data.custom.band_order" in problems(tmp_path)
    image = pixels().transpose(1, 2, 0)
    shard(tmp_path, band_order="names")
    np.testing.assert_array_equal(samples(tmp_path)["train_a"][0], image[..., ::-1])
    shard(tmp_path, band_order="positions")
    np.testing.assert_array_equal(samples(tmp_path)["train_a"][0], image)


@case("two images that name their bands in another order", "refused, both named")
def _(tmp_path):
    pair(tmp_path, "a", after=_tag("red", "green", "blue"))
    pair(tmp_path, "b", after=_tag("blue", "green", "red"))
    text = problems(tmp_path, bands=["b1", "b2", "b3"])
    assert "a.tif has 3 band(s) (red, green, blue)" in text
    assert "b.tif has 3 band(s) (blue, green, red)" in text


@case(
    "near infrared, red, green in a TIFF that its writer tagged red, green, blue",
    "taken in the recipe's order",
)
def _(tmp_path):
    pair(tmp_path, photometric="RGB")
    assert problems(tmp_path, bands=["nir", "red", "green"]) == ""


@case("12 bands, a recipe of 3", "refused; names `data.custom.bands` and `data.bands`")
def _(tmp_path):
    pair(tmp_path, image=pixels(bands=12))
    text = problems(tmp_path)
    assert "12 band(s), expected 3 (red, green, blue)" in text
    assert "data.custom.bands" in text
    assert "data.bands" in text


@case("40 rows of nodata (tag, or `data.custom.nodata`)", "ignored in labels, left out of mean and deviation")
def _(tmp_path):
    image = pixels()
    image[:, :40] = 0
    for root, tagged, declared in ((tmp_path / "1", {"nodata": 0}, {}), (tmp_path / "2", {}, {"nodata": 0})):
        pair(root, image=image, **tagged)
        card = shard(root, **declared)
        labels = samples(root)["train_a"][1]
        assert (labels[:40] == IGNORE).all()
        np.testing.assert_array_equal(labels[40:], ids()[40:])
        np.testing.assert_allclose(card.mean, image[:, 40:].mean((1, 2)) / 255)
        np.testing.assert_allclose(card.std, image[:, 40:].std((1, 2)) / 255)


@case("a pixel that is 0 in one band of a file with nodata 0", "holds data")
def _(tmp_path):
    image = pixels()
    image[1, 5, 7] = 0
    pair(tmp_path, image=image, nodata=0)
    shard(tmp_path)
    assert (samples(tmp_path)["train_a"][1] != IGNORE).all()


@case("internal mask of a TIFF", "pixels outside of it are ignored")
def _(tmp_path):
    mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
    mask[:, :50] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        pair(tmp_path, after=lambda file: file.write_mask(mask))
    shard(tmp_path)
    np.testing.assert_array_equal(samples(tmp_path)["train_a"][1] == IGNORE, mask == 0)


@case("VRT over bands of several types (uint8, uint16)", "read as the type that holds all of them")
def _(tmp_path):
    parts = [tif(tmp_path / "parts" / f"{n}.tif", pixels(n, bands=1, dtype=f"uint{8 * n}")) for n in (1, 2)]
    bands = [
        f'<VRTRasterBand dataType="{kind}" band="{n}"><SimpleSource><SourceFilename>{parts[n - 1]}</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
        for n, kind in ((1, "Byte"), (2, "UInt16"))
    ]
    (tmp_path / "images").mkdir()
    text = f'<VRTDataset rasterXSize="{WIDTH}" rasterYSize="{HEIGHT}">{"".join(bands)}</VRTDataset>'
    (tmp_path / "images" / "a.vrt").write_text(text)
    tif(tmp_path / "labels" / "a.tif", ids())
    own = {"images": "images/*.vrt", "bands": ["x", "y"]}
    assert problems(tmp_path, **own) == ""
    assert shard(tmp_path, **own).dtype == "uint16"
    image = samples(tmp_path)["train_a"][0]
    np.testing.assert_array_equal(image, np.stack([pixels(n, bands=1)[0] for n in (1, 2)], axis=-1))


@case(
    "tags of scale and offset",
    "not applied, with a note; images whose tags differ are refused",
)
def _(tmp_path):
    def tag(scale):
        return lambda file: setattr(file, "scales", (scale,) * 3)

    pair(tmp_path, "a", after=tag(0.01))
    assert "(x 0.01 + 0) are not applied" in str(check_raw_data(recipe(tmp_path), no_ray=True).scan.notes)
    pair(tmp_path, "b")
    text = "b.tif: tags of scale and offset (none) differ from those of"
    assert text in problems(tmp_path)
    assert "gdal_translate -unscale" in problems(tmp_path)


@case(
    "RGBA with a transparent part, recipe of red, green, blue",
    "three bands taken, transparent pixels ignored",
)
def _(tmp_path):
    alpha = np.full((HEIGHT, WIDTH), 255, np.uint8)
    alpha[30:60] = 0
    image = np.concatenate([pixels(), alpha[None]])
    pair(tmp_path, "a", image=image, photometric="RGB", alpha="yes")
    Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / "images" / "b.png")
    tif(tmp_path / "labels" / "b.tif", ids())
    assert problems(tmp_path, images="images/*.{tif,png}") == ""
    shard(tmp_path, images="images/*.{tif,png}")
    for image, labels, _ in samples(tmp_path).values():
        np.testing.assert_array_equal(image, pixels().transpose(1, 2, 0))
        np.testing.assert_array_equal(labels == IGNORE, alpha == 0)


@case(
    "four bands of which the writer marked the last as alpha, recipe of four bands",
    "all four taken, none as a mask",
)
def _(tmp_path):
    pair(tmp_path, image=pixels(bands=4), photometric="RGB", alpha="yes")
    shard(tmp_path, bands=["red", "green", "blue", "nir"])
    image, labels, _ = samples(tmp_path)["train_a"]
    np.testing.assert_array_equal(image, pixels(bands=4).transpose(1, 2, 0))
    np.testing.assert_array_equal(labels, ids())


@case("image with ground control points only", "written into each sample, moved with its window")
def _(tmp_path):
    points = [
        GroundControlPoint(0, 0, 10, 50, 0),
        GroundControlPoint(0, 100, 11, 50, 0),
        GroundControlPoint(100, 0, 10, 49, 0),
    ]

    def place(file):
        file.gcps = points, rasterio.CRS.from_epsg(4326)

    pair(tmp_path, crs=None, transform=None, after=place)
    assert problems(tmp_path) == ""
    shard(tmp_path, data={"tiling": {"default": {"size": 64}}})
    meta = samples(tmp_path)["train_a_r00064_c00128"][2]
    assert meta["gcps_crs"] == "EPSG:4326"
    assert meta["gcps"][1] == [-64, 100 - 128, 11, 50, 0]
    with open_scene(tmp_path / "images" / "a.tif") as scene:
        assert [point.x for point in scene.georeference.gcps] == [10, 11, 10]


@case("PNG or JPEG beside a world file", "georeference taken from it")
def _(tmp_path):
    for name, suffix, world in (("a", "png", "pgw"), ("b", "jpg", "jgw")):
        path = tmp_path / "images" / f"{name}.{suffix}"
        picture(path)
        numbers = (PIXEL, 0, 0, -PIXEL, PLACE.c + PIXEL / 2, PLACE.f - PIXEL / 2)
        path.with_suffix(f".{world}").write_text("\n".join(map(str, numbers)))
        tif(tmp_path / "labels" / f"{name}.tif", ids())
        with open_scene(path) as scene:
            assert scene.georeference.transform.almost_equals(PLACE)
    images = "images/*.{png,jpg}"
    assert problems(tmp_path, images=images) == ""
    shard(tmp_path, images=images)
    np.testing.assert_allclose(samples(tmp_path)["train_a"][2]["transform"], tuple(PLACE)[:6])
    tif(tmp_path / "labels" / "a.tif", ids(), transform=PLACE @ Affine.translation(3, 0))
    assert "labels start 3.00 pixels across" in problems(tmp_path, images=images)


@case("PNG and its world file in a zip archive", "georeference taken from it")
def _(tmp_path):
    picture(tmp_path / "a.png")
    numbers = (PIXEL, 0, 0, -PIXEL, PLACE.c + PIXEL / 2, PLACE.f - PIXEL / 2)
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "images/a.png")
        archive.writestr("images/a.pgw", "\n".join(map(str, numbers)))
    (tmp_path / "a.png").unlink()
    tif(tmp_path / "labels" / "a.tif", ids(), transform=PLACE @ Affine.translation(3, 0))
    assert "labels start 3.00 pixels across" in problems(tmp_path, images="images/*.png")


@case("an animation (WebP or PNG of several pictures)", "refused")
def _(tmp_path):
    more = [Image.fromarray(pixels(1).transpose(1, 2, 0))]
    picture(tmp_path / "images" / "a.webp", save_all=True, append_images=more, lossless=True)
    tif(tmp_path / "labels" / "a.tif", ids())
    assert "a.webp: an animation of 2 pictures" in problems(tmp_path, images="images/*.webp")


@case("a world file that holds something else", "refused, named")
def _(tmp_path):
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "a.pgw").write_text("hello")
    tif(tmp_path / "labels" / "a.tif", ids())
    assert "a.pgw: a world file holds six numbers" in problems(tmp_path, images="images/*.png")
    tif(tmp_path / "images" / "a.tif", pixels(), crs=None, transform=None)
    (tmp_path / "images" / "a.tfw").write_text("1 2 3")
    assert "a.tfw: a world file holds six numbers" in problems(tmp_path)


@case("CMYK as JPEG or TIFF", "refused")
def _(tmp_path):
    for suffix in ("tif", "jpg"):
        path = tmp_path / "images" / f"a.{suffix}"
        path.parent.mkdir(exist_ok=True)
        Image.new("CMYK", (WIDTH, HEIGHT)).save(path)
        tif(tmp_path / "labels" / "a.tif", ids())
        assert "CMYK" in problems(tmp_path, images=f"images/*.{suffix}")


@case(
    "label image in a CRS that cannot be projected (a local one)",
    "refused; `align: ignore` pairs pixels",
)
def _(tmp_path):
    pair(tmp_path)
    local = rasterio.CRS.from_wkt('LOCAL_CS["arbitrary",UNIT["metre",1]]')
    tif(tmp_path / "labels" / "a.tif", ids(), crs=local)
    assert "cannot be projected to the image" in problems(tmp_path, align="resample")
    assert problems(tmp_path, align="ignore") == ""


@case("image in a local or geocentric CRS (coordinates of a site)", "taken; its unit gives the pixel size")
def _(tmp_path):
    for name in ('LOCAL_CS["Local Coordinates (ft)",UNIT["foot",0.3048]]', "EPSG:4978"):
        crs = rasterio.CRS.from_user_input(name)
        pair(tmp_path, crs=crs)
        tif(tmp_path / "labels" / "a.tif", ids(), crs=crs)
        assert problems(tmp_path) == ""
        unit = 1 if name == "EPSG:4978" else 0.3048
        assert shard(tmp_path).ground_sampling_distance == pytest.approx(PIXEL * unit)


@case("image in web mercator", "its pixel size is that on the ground, not that of the projection")
def _(tmp_path):
    (x,), (y,) = project("EPSG:4326", "EPSG:3857", [10], [60])
    place = Affine(1, 0, x, 0, -1, y)
    pair(tmp_path, crs="EPSG:3857", transform=place)
    tif(tmp_path / "labels" / "a.tif", ids(), crs="EPSG:3857", transform=place)
    assert shard(tmp_path).ground_sampling_distance == pytest.approx(0.5, rel=1e-3)


@case("`data.custom.nodata: -9999` for uint8 images", "refused: it can never occur")
def _(tmp_path):
    pair(tmp_path)
    for value in (-9999, 0.5, float("inf"), float("nan")):
        assert f"data.custom.nodata: {value:g} is no value of uint8 images" in problems(
            tmp_path, nodata=value
        )


@case("an image placed by RPC only", "taken without a georeference; `--check` reports it")
def _(tmp_path):
    rpcs = RPC(
        height_off=0, height_scale=1, lat_off=50, lat_scale=1, line_off=64, line_scale=64, long_off=10, long_scale=1,
        samp_off=96, samp_scale=96, line_den_coeff=[1.0] + [0.0] * 19, line_num_coeff=[0.0] * 20,
        samp_den_coeff=[1.0] + [0.0] * 19, samp_num_coeff=[0.0] * 20,
    )  # fmt: skip
    pair(tmp_path, crs=None, transform=None, rpcs=rpcs)
    result = check_raw_data(recipe(tmp_path), no_ray=True).scan
    assert not result.problems
    assert "placed by RPC only" in str(result.notes)


@case("TIFF of three pages", "refused; `data.custom.page: 2` takes one")
def _(tmp_path):
    pages = [Image.fromarray(pixels(number).transpose(1, 2, 0)) for number in range(3)]
    pair(tmp_path)
    path = tmp_path / "images" / "a.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    assert "3 pages in one TIFF" in problems(tmp_path)
    assert "data.custom.page" in problems(tmp_path)
    assert "page 4 was asked for, the file has 3" in problems(tmp_path, page=4)
    shard(tmp_path, page=2)
    np.testing.assert_array_equal(samples(tmp_path)["train_a"][0], pixels(1).transpose(1, 2, 0))
    with pytest.raises(DataError, match="3 pages"):
        open_scene(path)


@case("VRT over TIFFs, Imagine file, lossless JPEG 2000", "read by windows through GDAL")
def _(tmp_path):
    part = tif(tmp_path / "parts" / "a.tif", pixels())
    tif(tmp_path / "images" / "b.img", pixels(), driver="HFA")
    tif(tmp_path / "images" / "c.jp2", pixels(), driver="JP2OpenJPEG", QUALITY="100", REVERSIBLE="YES")
    import rasterio.shutil

    rasterio.shutil.copy(part, tmp_path / "images" / "a.vrt", driver="VRT")
    for name in "abc":
        tif(tmp_path / "labels" / f"{name}.tif", ids())
    images = "images/*.{vrt,img,jp2}"
    assert problems(tmp_path, images=images) == ""
    first = shard(tmp_path, images=images, data={"tiling": {"default": {"size": 64}}})
    for image, _, meta in samples(tmp_path).values():
        row, column, height, width = meta["window"]
        expected = pixels()[:, row : row + height, column : column + width]
        np.testing.assert_array_equal(image, expected.transpose(1, 2, 0))
    tif(part, pixels(1))
    assert shard(tmp_path, images=images, data={"tiling": {"default": {"size": 64}}}).digest != first.digest


def reflectance(number=0, bands=3):
    """float32 between 0.01 and 0.42 (bands H W)."""
    return np.random.default_rng(number).uniform(0.01, 0.42, (bands, HEIGHT, WIDTH)).astype(np.float32)


@case("float32 reflectance, no `data.scale`", "refused; proposes the percentiles of the pixels for each band")
def _(tmp_path):
    pair(tmp_path, image=reflectance())
    text = problems(tmp_path)
    assert "Set data.scale to the values that stand for dark and bright" in text
    low, high = np.percentile(reflectance()[0], (1, 99))
    assert f"data.scale=[[{low:.4g}, {high:.4g}], [" in text


@case(
    "float32 reflectance with NaN, infinity and a spike, `data.scale: [0, 0.41]`",
    "trained: stored as float32 bit by bit, NaN ignored, mean and deviation of the values clipped to the scale",
)
def _(tmp_path):
    image = reflectance()
    image[:, :10] = np.nan
    image[:, 20, 30] = np.inf
    image[0, 40, 50] = np.nan  # one band without data: the pixel stays
    image[1, 60, 70] = 1e6
    pair(tmp_path, image=image)
    card = shard(tmp_path, data={"scale": [0, 0.41]})
    stored, labels, _ = samples(tmp_path)["train_a"]
    assert (card.dtype, card.max_value, card.scale) == ("float32", 1.0, ((0, 0.41),) * 3)
    np.testing.assert_array_equal(stored, np.where(np.isinf(image), np.nan, image).transpose(1, 2, 0))
    assert (labels[:10] == IGNORE).all()
    assert labels[20, 30] == IGNORE
    assert (labels[10:] == IGNORE).sum() == 1
    clipped = np.where(np.isfinite(image), image, np.nan).clip(0, 0.41)
    np.testing.assert_allclose(card.mean, np.nanmean(clipped, (1, 2)), atol=1e-5)
    np.testing.assert_allclose(card.std, np.nanstd(clipped, (1, 2)), atol=1e-5)
    assert "warnings" not in card.extra
    batch = next(iter(TrainingLoader(ShardSet.open(str(tmp_path / "shards")), "train", **LOADING).epoch(0)))
    assert batch.images.dtype == torch.float32
    assert (batch.images.isnan().all(1) == (batch.labels == IGNORE)).all()
    checked = check_raw_data(recipe(tmp_path, data={"scale": [0, 0.1]}), no_ray=True)
    assert "of band red lie outside" in str(checked.scan.warnings)
    assert "of band red lie outside" in str(shard(tmp_path, data={"scale": [0, 0.1]}).extra["warnings"])


@case(
    "int16 radar in decibels with nodata -9999, a `data.scale` for each band",
    "trained, nodata ignored",
)
def _(tmp_path):
    image = np.random.default_rng(0).integers(-25, 0, (2, HEIGHT, WIDTH)).astype(np.int16)
    image[:, :, :20] = -9999
    pair(tmp_path, image=image, nodata=-9999)
    card = shard(tmp_path, bands=["vv", "vh"], data={"scale": [[-25, 0], [-30, -5]]})
    stored, labels, _ = samples(tmp_path)["train_a"]
    assert card.dtype == "float32"
    assert (labels[:, :20] == IGNORE).all()
    assert (labels[:, 20:] != IGNORE).all()
    np.testing.assert_allclose(card.mean[1], image[1, :, 20:].clip(-30, -5).mean(), atol=1e-3)
    with open_scene(tmp_path / "images" / "a.tif") as scene:
        assert scene.dtype == card.dtype
        pixels, valid = scene.read((0, HEIGHT), (0, WIDTH), (0, 1))
    np.testing.assert_array_equal(pixels, stored)
    np.testing.assert_array_equal(valid, labels != IGNORE)


@case(
    "`data.scale` for 8 or 16 bit images, a scale that is upside down or of another number of bands",
    "refused",
)
def _(tmp_path):
    pair(tmp_path)
    assert "data.max_value says" in problems(tmp_path, data={"scale": [0, 1]})
    pair(tmp_path, image=reflectance())
    assert "[1, 0] is not a low and a higher value" in problems(tmp_path, data={"scale": [1, 0]})
    assert "2 pairs for 3 band(s)" in problems(tmp_path, data={"scale": [[0, 1], [0, 1]]})


@case("int32, uint32, complex images", "refused; names the types that are read")
def _(tmp_path):
    for name in ("int32", "uint32", "complex64"):
        pair(tmp_path, image=pixels(dtype=name))
        assert f"pixels are {name}, which is not supported; convert them to uint8" in problems(tmp_path)


@case(
    "uint16 with values up to 3987, `data.max_value` unset (65535)", "warned, proposes `data.max_value=4000`"
)
def _(tmp_path):
    image = pixels(dtype="uint16") * 15
    image[0, 0, 0] = 3987
    pair(tmp_path, image=image)
    warnings = shard(tmp_path).extra["warnings"]
    assert len(warnings) == 1
    assert "the highest training pixel is 3987" in warnings[0]
    assert "data.max_value=4000" in warnings[0]
    assert warnings[0] in check_raw_data(recipe(tmp_path), no_ray=True).scan.warnings
    assert "warnings" not in shard(tmp_path, data={"max_value": 4000}).extra

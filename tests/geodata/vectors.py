"""Rows about labels drawn as polygons, lines and points, areas of what was labelled, and blocks of one image."""

import json
import sqlite3
import struct
from contextlib import closing

import numpy as np
import pyogrio
import rasterio.crs
import shapely
from affine import Affine
from rasterio.features import rasterize
from rasterio.warp import transform

from d2ls.labels import IGNORE
from sharding.raster.vectors import project, write_features
from tests.geodata import case
from tests.geodata.tiffs import CRS, HEIGHT, PIXEL, PLACE, WIDTH, ids, pixels, tif
from tests.geodata.world import notes, problems, samples, shard

DEGREES = rasterio.crs.CRS.from_epsg(4326)
UTM = rasterio.crs.CRS.from_user_input(CRS)
BOXES = [(0, 0, 64, 96), (64, 0, 64, 96), (0, 96, 128, 60)]
"""Row, column, height and width of three polygons; the last columns are free."""

TILE = {"tiling": {"default": {"size": 32}}}


def ground(*boxes, place=PLACE):
    """Rectangles in pixels of the image, as polygons."""
    corners = [(*(place @ (c, r)), *(place @ (c + w, r + h))) for r, c, h, w in boxes]
    return np.array([shapely.box(*corner) for corner in corners], object)


def texts(*values):
    return np.array(values, object)


def scene(root, shapes=None, *, file="labels.gpkg", crs=UTM, driver=None, geometry_type="Polygon", **profile):
    """Writes an image and polygons whose attribute `kind` is a, b, c; `profile` goes to the image."""
    tif(root / "images" / "a.tif", pixels(), **profile)
    shapes = ground(*BOXES) if shapes is None else np.asarray(shapes, object)
    kinds = texts(*"abcabc"[: len(shapes)])
    if driver is None:
        write_features(root / file, "land", shapes, {"kind": kinds}, crs, geometry_type=geometry_type)
    else:
        pyogrio.raw.write(
            root / file, shapely.to_wkb(shapes), [kinds], ["kind"], driver=driver, geometry_type=geometry_type,
            crs=crs.to_wkt() if crs else None, encoding="UTF-8",
        )  # fmt: skip
    return {"masks": [], "vectors": {"files": file, "attribute": "kind"}}


def expected(shapes=None, fill=IGNORE):
    shapes = ground(*BOXES) if shapes is None else shapes
    return rasterize(
        zip(shapes, range(3), strict=False), (HEIGHT, WIDTH), fill=fill, transform=PLACE, dtype=np.uint8
    )


def labels(root):
    return samples(root)["train_a"][1]


@case(
    "polygons in a GeoPackage over an image",
    "class of each pixel whose centre they cover; the rest is ignored, or the `background`",
)
def _(tmp_path):
    own = scene(tmp_path)
    assert problems(tmp_path, **own) == ""
    shard(tmp_path, **own)
    np.testing.assert_array_equal(labels(tmp_path), expected())
    own["vectors"]["background"] = "b"
    shard(tmp_path, **own)
    np.testing.assert_array_equal(labels(tmp_path), expected(fill=1))


@case("polygons in a Shapefile, GeoJSON (degrees) or FlatGeobuf", "read; projected to the image")
def _(tmp_path):
    for file, driver, crs in (
        ("a.shp", "ESRI Shapefile", UTM),
        ("a.fgb", "FlatGeobuf", UTM),
        ("a.json", "GeoJSON", DEGREES),
    ):
        (tmp_path / driver).mkdir()
        own = scene(tmp_path / driver, project(ground(*BOXES), UTM, crs), file=file, driver=driver, crs=crs)
        shard(tmp_path / driver, **own)
        assert (labels(tmp_path / driver) == expected()).mean() > 0.999


@case(
    "attribute values that the recipe does not list",
    "refused with their counts; `values` lists them, `ignored` ignores them",
)
def _(tmp_path):
    own = scene(tmp_path)
    own["vectors"]["values"] = {"a": ["x"], "b": ["y"]}
    assert "'a' (1), 'b' (1). Listed: 'x', 'y', 'c'" in problems(tmp_path, **own)
    own["vectors"] |= {"values": {"a": ["a", "b"], "b": ["y"]}, "ignored": ["c"]}
    assert problems(tmp_path, data={"splits": ["train"]}, **own).startswith("class 'b' has no pixel")
    own["vectors"]["values"] = {"a": ["q", "a"], "c": ["b"], "b": [3]}
    assert "values of 'kind'" not in problems(tmp_path, **own)


@case("an attribute or a layer that the file does not have", "refused, those of the file named")
def _(tmp_path):
    own = scene(tmp_path)
    own["vectors"]["attribute"] = "class"
    assert "no attribute 'class'. Attributes: kind" in problems(tmp_path, **own)
    own["vectors"] |= {"attribute": "kind", "layer": "lend"}
    assert "no layer 'lend'. Layers: land" in problems(tmp_path, **own)
    write_features(tmp_path / "labels.gpkg", "more", ground(*BOXES), {}, UTM)
    del own["vectors"]["layer"]
    assert "2 layers (land, more), and none is chosen" in problems(tmp_path, **own)


@case(
    "no CRS in the vector file or in the image",
    "refused with the fix; taken with a note if neither has one",
)
def _(tmp_path):
    own = scene(tmp_path, crs=None)
    assert f"names no CRS. Say it with `crs` in data.custom.vectors, for instance crs: {CRS}" in problems(
        tmp_path, **own
    )
    own["vectors"]["crs"] = CRS
    assert problems(tmp_path, **own) == ""
    own = scene(tmp_path / "2")
    tif(tmp_path / "2" / "images" / "a.tif", pixels(), crs=None)
    assert "gdal_edit.py -a_srs" in problems(tmp_path / "2", **own)
    own = scene(tmp_path / "3", crs=None)
    tif(tmp_path / "3" / "images" / "a.tif", pixels(), crs=None)
    assert problems(tmp_path / "3", **own) == ""
    assert "neither the layer nor the image names a CRS" in notes(tmp_path / "3", **own)


@case(
    "polygons on another datum than the image (WGS 84, NAD83)",
    "projected; a note says that only the datum differs",
)
def _(tmp_path):
    own = scene(tmp_path, crs=rasterio.crs.CRS.from_epsg(32614))
    assert problems(tmp_path, **own) == ""
    assert "projected from EPSG:32614 to EPSG:26914 of the image, which differ in the datum only" in notes(
        tmp_path, **own
    )


@case("a layer in a wrong CRS over labelled ground", "refused: none of its features lies on an image")
def _(tmp_path):
    own = scene(tmp_path, crs=None)
    own["vectors"] |= {"crs": "EPSG:4326", "background": "b"}
    write_features(tmp_path / "area.gpkg", "area", ground((10, 20, 70, 120)), {}, UTM)
    text = problems(tmp_path, area={"files": "area.gpkg"}, **own)
    assert "labels.gpkg (layer land): none of its features lies on an image" in text
    assert "`crs` in data.custom.vectors" in text


@case("no polygon on an image", "refused; `unused`, or an `area` that states that nothing is on it")
def _(tmp_path):
    own = scene(tmp_path)
    tif(tmp_path / "images" / "b.tif", pixels(1), transform=Affine.translation(9000, 0) @ PLACE)
    assert "b.tif: no feature of" in problems(tmp_path, **own)
    assert problems(tmp_path, unused=["images/b.tif"], **own) == ""


@case("a vector file with `!` or `;` in its path", "refused: the library would read another file")
def _(tmp_path):
    own = scene(tmp_path)
    for sign in "!;":
        (tmp_path / "labels.gpkg").rename(tmp_path / f"a{sign}b.gpkg")
        own["vectors"]["files"] = f"a{sign}b.gpkg"
        assert "is not possible for vector files. Rename" in problems(tmp_path, **own)
        (tmp_path / f"a{sign}b.gpkg").rename(tmp_path / "labels.gpkg")


@case("geometries of CAD (a polyhedral surface)", "refused, named")
def _(tmp_path):
    own = scene(tmp_path)
    ring = (
        np.column_stack([shapely.get_coordinates(ground(*BOXES)[0]), np.full(5, 3.0)]).astype("<f8").tobytes()
    )
    polygon = struct.pack("<BIII", 1, 1003, 1, 5) + ring
    surface = struct.pack("<BII", 1, 1015, 1) + polygon
    (tmp_path / "labels.gpkg").unlink()
    pyogrio.raw.write(
        tmp_path / "labels.gpkg", np.array([surface], object), [texts("a")], ["kind"], layer="land", driver="GPKG",
        geometry_type="Unknown", crs=CRS,
    )  # fmt: skip
    assert "labels.gpkg (layer land): geometries other than polygons" in problems(tmp_path, **own)


@case("a layer without features", "refused")
def _(tmp_path):
    own = scene(tmp_path)
    own["vectors"]["files"] = "empty.geojson"
    (tmp_path / "empty.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    assert "the layer has no features" in problems(tmp_path, **own)


@case("points over an image in a local CRS or in web mercator", "`buffer_m` is metres on the ground")
def _(tmp_path):
    (x,), (y,) = transform("EPSG:4326", "EPSG:3857", [10], [60])
    local = rasterio.crs.CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')
    for crs, size in ((local, 1), (rasterio.crs.CRS.from_epsg(3857), 0.5)):
        place, root = Affine(1, 0, x, 0, -1, y), tmp_path / str(size)
        points = [shapely.Point(place @ (column + 0.5, 60.5)) for column in (20, 60, 100)]
        own = scene(root, points, crs=crs, geometry_type="Point")
        tif(root / "images" / "a.tif", pixels(), crs=crs, transform=place)
        own["vectors"]["buffer_m"] = 10
        shard(root, **own)
        assert abs((labels(root)[60] == 0).sum() - 20 / size) <= 1


@case("lines and points among the labels", "refused; `buffer_m` sets how many metres around them they label")
def _(tmp_path):
    line = shapely.LineString([PLACE @ (10, 120), PLACE @ (60, 120)])
    own = scene(
        tmp_path, [*ground(*BOXES[:2]), shapely.Point(PLACE @ (150, 20)), line], geometry_type="Unknown"
    )
    own["vectors"]["values"] = {"a": ["a", "q"]}
    assert "geometries without an area (1 Point, 1 LineString). Say with `buffer_m`" in problems(
        tmp_path, **own
    )
    own["vectors"]["buffer_m"] = 2 * PIXEL
    shard(tmp_path, **own)
    assert labels(tmp_path)[117:123, 20].tolist() == [1, 0, 0, 0, 0, 1]


@case("multi-part polygons, heights (Z)", "taken without heights, with a note")
def _(tmp_path):
    first, second, third = ground(*BOXES)
    parts = shapely.MultiPolygon([first, second])
    own = scene(
        tmp_path, [parts, shapely.force_3d(third, 5), ground((0, 160, 9, 9))[0]], geometry_type="Unknown"
    )
    shard(tmp_path, **own)
    assert (labels(tmp_path)[100, 50], labels(tmp_path)[5, 100]) == (0, 1)
    assert "heights (Z) of 1 features not used" in notes(tmp_path, **own)


@case("invalid polygons (a bow tie, a doubled ring)", "repaired, counted in a note")
def _(tmp_path):
    bow = shapely.Polygon([PLACE @ corner for corner in ((100, 10), (120, 30), (120, 10), (100, 30))])
    own = scene(tmp_path, [*ground(*BOXES[:2]), bow])
    assert problems(tmp_path, **own) == ""
    assert "1 of 3 geometries were invalid (Self-intersection 1) and were repaired" in notes(tmp_path, **own)


@case("two features of one id in a GeoJSON", "both taken, with a note")
def _(tmp_path):
    own = scene(
        tmp_path,
        file="a.geojson",
        driver="GeoJSON",
        crs=rasterio.crs.CRS.from_epsg(4326),
        shapes=project(ground(*BOXES), UTM, rasterio.crs.CRS.from_epsg(4326)),
    )
    text = json.loads((tmp_path / "a.geojson").read_text())
    for feature in text["features"]:
        feature["id"] = 7
    (tmp_path / "a.geojson").write_text(json.dumps(text))
    assert problems(tmp_path, **own) == ""
    assert "Several features with id = 7" in notes(tmp_path, **own)


@case("a GeoPackage that another program is writing to (locked)", "refused: save the edits, or read a copy")
def _(tmp_path):
    own = scene(tmp_path)
    with closing(sqlite3.connect(tmp_path / "labels.gpkg", isolation_level=None)) as other:
        other.execute("begin exclusive")
        assert "another program is writing to it" in problems(tmp_path, **own)
        other.execute("rollback")
    assert problems(tmp_path, **own) == ""


@case("a Shapefile without .prj", "refused; set `crs`")
def _(tmp_path):
    own = scene(tmp_path, file="a.shp", driver="ESRI Shapefile")
    (tmp_path / "a.prj").unlink()
    assert "names no CRS. Say it with `crs`" in problems(tmp_path, **own)
    own["vectors"]["crs"] = CRS
    assert problems(tmp_path, **own) == ""


@case(
    "a Shapefile that states a wrong encoding",
    "refused as values that are not listed; set `encoding`",
)
def _(tmp_path):
    own = scene(tmp_path, file="a.shp", driver="ESRI Shapefile")
    pyogrio.raw.write(
        tmp_path / "a.shp", shapely.to_wkb(ground(*BOXES)), [texts("Straße", "b", "c")], ["kind"],
        driver="ESRI Shapefile", geometry_type="Polygon", crs=CRS, encoding="UTF-8",
    )  # fmt: skip
    (tmp_path / "a.cpg").unlink()
    own["vectors"]["values"] = {"a": "Straße"}
    assert "If letters look wrong, name the `encoding` of the Shapefile" in problems(tmp_path, **own)
    own["vectors"]["encoding"] = "UTF-8"
    assert problems(tmp_path, **own) == ""


@case(
    "some images with a label image, the others with polygons",
    "both taken: `masks` and `vectors` side by side",
)
def _(tmp_path):
    own = scene(tmp_path)
    own["masks"] = "labels/*.tif"
    tif(tmp_path / "images" / "b.tif", pixels(1))
    tif(tmp_path / "labels" / "b.tif", ids())
    assert problems(tmp_path, **own) == ""
    shard(tmp_path, **own)
    np.testing.assert_array_equal(labels(tmp_path), expected())
    np.testing.assert_array_equal(samples(tmp_path)["train_b"][1], ids())


def _part(name, left):
    """A tile of a VRT, of the band BAND."""
    place = f'yOff="0" xSize="96" ySize="{HEIGHT}"'
    return (
        f'<SimpleSource><SourceFilename relativeToVRT="1">tiles/{name}.tif</SourceFilename>'
        f'<SourceBand>BAND</SourceBand><SrcRect xOff="0" {place}/><DstRect xOff="{left}" {place}/></SimpleSource>'
    )


@case("a VRT over tiles, polygons across their borders", "one image")
def _(tmp_path):
    own = scene(tmp_path)
    parts = "".join(_part(name, left) for name, left in (("w", 0), ("e", 96)))
    for name, left in (("w", 0), ("e", 96)):
        place = PLACE @ Affine.translation(left, 0)
        tif(tmp_path / "tiles" / f"{name}.tif", pixels()[:, :, left : left + 96], transform=place)
    numbers = ", ".join(map(str, PLACE.to_gdal()))
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}">{parts}</VRTRasterBand>'.replace("BAND", band)
        for band in "123"
    )
    (tmp_path / "a.vrt").write_text(
        f'<VRTDataset rasterXSize="{WIDTH}" rasterYSize="{HEIGHT}"><SRS>{CRS}</SRS>'
        f"<GeoTransform>{numbers}</GeoTransform>{bands}</VRTDataset>"
    )
    shard(tmp_path, images="a.vrt", **own)
    image, result, _ = samples(tmp_path)["train_a"]
    np.testing.assert_array_equal(image, pixels().transpose(1, 2, 0))
    np.testing.assert_array_equal(result, expected())


@case(
    "polygons of what was labelled (`area`), over label images or polygons",
    "everything outside of them is ignored",
)
def _(tmp_path):
    own = scene(tmp_path)
    write_features(tmp_path / "area.gpkg", "area", ground((10, 20, 70, 120)), {}, UTM)
    inside = np.zeros((HEIGHT, WIDTH), bool)
    inside[10:80, 20:140] = True
    tif(tmp_path / "labels" / "a.tif", ids())
    for number, (more, truth) in enumerate(((own, expected(fill=1)), ({"masks": "labels/*.tif"}, ids()))):
        if number == 0:
            own["vectors"]["background"] = "b"
        shard(tmp_path, area={"files": "area.gpkg"}, **more)
        np.testing.assert_array_equal(labels(tmp_path), np.where(inside, truth, IGNORE)[10:80, 20:140])
    far = ground((10, 20, 5, 5), place=Affine.translation(9000, 0) @ PLACE)
    write_features(tmp_path / "far.gpkg", "area", far, {}, UTM)
    assert "no polygon of data.custom.area lies on this image" in problems(
        tmp_path, area={"files": "far.gpkg"}, **own
    )
    write_features(tmp_path / "bare.gpkg", "area", ground((10, 20, 70, 120)), {}, None)
    assert f"Say it with data.custom.area.crs, for instance crs: {CRS}" in problems(
        tmp_path, area={"files": "bare.gpkg"}, **own
    )
    tif(tmp_path / "images" / "a.tif", pixels(), crs=None)
    area = {"area": {"files": "area.gpkg"}, "masks": "labels/*.tif"}
    assert "the image names no CRS" in problems(tmp_path, **area)
    assert "gdal_edit.py -a_srs EPSG:..." in problems(tmp_path, **area)
    tif(tmp_path / "images" / "a.tif", pixels(), crs=None, transform=None)
    assert "gdal_translate -a_srs and -a_ullr" in problems(tmp_path, **area)


@case(
    "one image, an area for each split (`split.areas`)",
    "divided; overlapping areas of two splits are refused",
)
def _(tmp_path):
    own = scene(tmp_path)
    own["vectors"]["background"] = "a"
    for file, third in (("area.gpkg", (60, 0, 68, 60)), ("over.gpkg", (0, 0, 68, 60))):
        shapes = ground((0, 60, 128, 132), (0, 0, 60, 60), third)
        write_features(tmp_path / file, "area", shapes, {"part": texts("train", "val", "test")}, UTM)
    own["split"] = {"areas": "part"}
    card = shard(tmp_path, area={"files": "area.gpkg"}, **own)
    assert set(card.splits) == {"train", "val", "test"}
    total = sum(sum(split.class_pixels) for split in card.splits.values())
    assert total == HEIGHT * WIDTH
    write_features(tmp_path / "null.gpkg", "area", ground((0, 0, 128, 60)), {"part": texts(None)}, UTM)
    assert "a polygon without a value of 'part'" in problems(tmp_path, area={"files": "null.gpkg"}, **own)
    assert "polygons of test and val overlap" in problems(tmp_path, area={"files": "over.gpkg"}, **own)


@case(
    "one image, blocks of ground (`split.blocks`) with a buffer",
    "divided; no training pixel lies within the buffer of a tested one",
)
def _(tmp_path):
    own = scene(tmp_path)
    own["vectors"]["background"] = "a"
    fractions = {"train": 0.5, "val": 0.25, "test": 0.25}
    own["split"] = {"blocks": {"size_m": 32 * PIXEL, "buffer_m": 6 * PIXEL, "fractions": fractions}}
    assert problems(tmp_path, data=TILE, **own) == ""
    assert "is 3.60 m apart" in notes(tmp_path, data=TILE, **own)
    card = shard(tmp_path, data=TILE, **own)
    owner = np.full((HEIGHT, WIDTH), "", object)
    for key, (_, result, meta) in samples(tmp_path).items():
        row, column, height, width = meta["window"]
        part = result[: HEIGHT - row, : WIDTH - column] != IGNORE
        owner[row : row + height, column : column + width][part] = key.split("_")[0]
    places = {split: np.argwhere(owner == split) for split in fractions}
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        apart = np.linalg.norm(places[first][:, None] - places[second][None], axis=2).min()
        assert apart >= 6
    assert (tmp_path / "shards" / "preview" / "splits.png").is_file()
    written = pyogrio.read_info(tmp_path / "shards" / "preview" / "splits.gpkg", layer="splits")
    assert written["features"] == sum(split.scenes for split in card.splits.values()) == 24
    styles = pyogrio.raw.read(
        tmp_path / "shards" / "preview" / "splits.gpkg", layer="layer_styles", columns=["styleQML"]
    )
    assert all(f'value="{split}"' in styles[3][0][0] for split in fractions)


@case(
    "blocks over images in degrees, of two CRS, or fewer than splits",
    "refused; names `gdalwarp`, or `size_m`",
)
def _(tmp_path):
    own = scene(tmp_path)
    own["split"] = {"blocks": {"size_m": 600, "fractions": {"train": 0.5, "val": 0.5}}}
    assert "1 block(s) with labels cannot fill 2 splits" in problems(tmp_path, **own)
    tif(tmp_path / "images" / "b.tif", pixels(1), crs="EPSG:32614")
    assert "needs one CRS. Project one of them: gdalwarp -t_srs EPSG:26914" in problems(tmp_path, **own)
    place = Affine(1e-5, 0, -99, 0, -1e-5, 36)
    own = scene(tmp_path / "2", ground(*BOXES, place=place), crs=rasterio.crs.CRS.from_epsg(4326)) | {
        "split": own["split"]
    }
    tif(tmp_path / "2" / "images" / "a.tif", pixels(), crs="EPSG:4326", transform=place)
    assert "is in degrees (EPSG:4326): data.custom.split.blocks needs metres" in problems(
        tmp_path / "2", **own
    )


@case(
    "cross-validation: `split.fold: {k: 2, n: 4}` over scenes, or with `blocks` over blocks",
    "fold k is test, the next one val, the others train",
)
def _(tmp_path):
    own = scene(tmp_path)
    own["vectors"]["background"] = "a"
    blocks = {"size_m": 32 * PIXEL}
    tested = []
    for k in (1, 2, 3, 4):
        own["split"] = {"blocks": blocks, "fold": {"k": k, "n": 4}}
        card = shard(tmp_path, data=TILE, **own)
        assert sum(split.scenes for split in card.splits.values()) == 24
        tested.append(
            {meta["image"] for key, (_, _, meta) in samples(tmp_path).items() if key.startswith("test")}
        )
    assert len(set.union(*tested)) == sum(map(len, tested)) == 24

"""Rows about scenes to map."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import rasterio.errors
import shapely
from affine import Affine
from PIL import Image
from rasterio.control import GroundControlPoint

from d2ls.errors import D2LSError
from d2ls.inference import Predictor
from pipeline.prediction.arguments import parse_request
from pipeline.prediction.inputs import list_jobs
from pipeline.prediction.map_scene import map_scene
from pipeline.prediction.request import AreaOptions, MapOptions, PolygonOptions
from sharding.raster.vectors import write_features
from tests.geodata import case
from tests.geodata.tiffs import CRS, HEIGHT, PLACE, WIDTH, pixels, tif
from tests.inference_stubs import LocalStub, model_info


def model(**info):
    bands = info.get("bands", 3)
    return Predictor(LocalStub(bands=bands), model_info(**info))


def predict(source, target, predictor=None, **options):
    """Maps a scene; returns its notes in one text, or the error."""
    try:
        report = map_scene(predictor or model(), str(source), str(target), MapOptions(**options), digest="d")
    except D2LSError as error:
        return str(error)
    return "; ".join(report.notes)


def read(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path) as file:
            return file.read(1)


def expected(array):
    return model().predict(np.ascontiguousarray(array.transpose(1, 2, 0)))


def same(path, array):
    return (read(path) == expected(array)).mean() > 0.999


@case("MODEL `folder/*.tif` without quotes, OUTPUT forgotten", "refused, nothing touched", command="predict")
def _(tmp_path):
    files = [tif(tmp_path / f"{n}.tif", pixels(n)) for n in range(3)]
    before = [file.read_bytes() for file in files]
    assert "not a map of this program" in predict(files[0], files[1])
    with pytest.raises(D2LSError, match=r"3 words after MODEL .* put quotes around it"):
        parse_request("predict", "", "", ["m", *map(str, files)])
    assert [file.read_bytes() for file in files] == before


@case("OUTPUT is a file of somebody else", "refused; `--overwrite` replaces it", command="predict")
def _(tmp_path):
    source, notes = tif(tmp_path / "s.tif", pixels()), tmp_path / "map.tif"
    notes.write_text("mine")
    assert "not a map of this program, it is left as it is" in predict(source, notes)
    assert notes.read_text() == "mine"
    assert predict(source, notes, overwrite=True) == ""


@case(
    "OUTPUT below INPUT, command repeated",
    "its own maps are no scenes; what is finished stays",
    command="predict",
)
def _(tmp_path):
    source = tif(tmp_path / "s.tif", pixels())
    ((_, target),) = list_jobs(str(tmp_path), str(tmp_path / "maps"))
    predict(source, target, overlay=True, probabilities=True)
    assert list_jobs(str(tmp_path), str(tmp_path / "maps")) == [(str(source), target)]


@case(
    "image tagged blue, green, red; model of red, green, blue",
    "taken by name, with a note",
    command="predict",
)
def _(tmp_path):
    def tag(file):
        file.descriptions = ("blue", "green", "red")

    source = tif(tmp_path / "s.tif", pixels(), after=tag)
    assert "[3, 2, 1] chosen by their names" in predict(source, tmp_path / "map.tif")
    assert same(tmp_path / "map.tif", pixels()[::-1])


@case("a name in the file contradicts the order of the model", "refused, `--bands` named", command="predict")
def _(tmp_path):
    def tag(file):
        file.descriptions = ("blue", "second", "third")

    source = tif(tmp_path / "s.tif", pixels(), after=tag)
    text = predict(source, tmp_path / "map.tif")
    assert "Band 1 is 'blue' in the file and 'red' in the model. Choose with --bands" in text
    assert predict(source, tmp_path / "map.tif", bands=(3, 2, 1)) == ""


@case("12 bands, model of 3", "refused, `--bands` named", command="predict")
def _(tmp_path):
    source = tif(tmp_path / "s.tif", pixels(bands=12))
    text = predict(source, tmp_path / "map.tif")
    assert "12 band(s)" in text
    assert "Choose with --bands, for instance --bands 1,2,3" in text


@case("scene with ground control points only", "carried to the map", command="predict")
def _(tmp_path):
    places = ((0, 0), (0, 90), (80, 0))
    points = [GroundControlPoint(row, column, 100.0 + column, 200.0 - row) for row, column in places]
    source = tif(tmp_path / "s.tif", pixels(), gcps=points, transform=None)
    notes = predict(source, tmp_path / "map.tif", probabilities=True)
    assert notes.startswith("the model has no temperature")
    for name in ("map.tif", "map.probabilities.tif"):
        with rasterio.open(tmp_path / name) as file:
            result, crs = file.gcps
        assert [(p.row, p.col, p.x, p.y) for p in result] == [(p.row, p.col, p.x, p.y) for p in points]
        assert crs == CRS


@case(
    "PNG or JPEG beside a world file",
    "placed by it; a PNG map keeps no place, with a note",
    command="predict",
)
def _(tmp_path):
    for kind, world in (("png", "pgw"), ("jpg", "jgw"), ("jpg", "wld")):
        scene = tmp_path / world / f"s.{kind}"
        scene.parent.mkdir()
        Image.fromarray(pixels().transpose(1, 2, 0)).save(scene)
        scene.with_suffix(f".{world}").write_text("0.5\n0\n0\n-0.5\n100.5\n2000.5\n")
        assert predict(scene, scene.with_name("map.tif")) == ""
        with rasterio.open(scene.with_name("map.tif")) as file:
            assert file.transform == Affine(0.5, 0, 100.25, 0, -0.5, 2000.75)
        assert "a PNG keeps no coordinates" in predict(scene, scene.with_name("map.png"))


@case("scene in a local CRS (coordinates of a site)", "mapped; areas by its unit", command="predict")
def _(tmp_path):
    crs = rasterio.CRS.from_wkt('LOCAL_CS["Local Coordinates (ft)",UNIT["foot",0.3048]]')
    source = tif(tmp_path / "s.tif", pixels(), crs=crs)
    assert predict(source, tmp_path / "map.tif", areas=AreaOptions()) == ""
    assert f"A pixel covers {(0.6 * 0.3048) ** 2:.6g} m2" in (tmp_path / "map.areas.md").read_text()


@case("TIFF of several pages", "refused; `--page` chooses", command="predict")
def _(tmp_path):
    pages = [Image.fromarray(pixels(n).transpose(1, 2, 0)) for n in range(3)]
    pages[0].save(tmp_path / "s.tif", save_all=True, append_images=pages[1:])
    text = predict(tmp_path / "s.tif", tmp_path / "map.tif")
    assert "3 pages in one TIFF" in text
    assert "--page 1 for a map" in text
    assert predict(tmp_path / "s.tif", tmp_path / "map.tif", page=3) == ""
    assert same(tmp_path / "map.tif", pixels(2))
    assert "page 4 was asked for, the file has 3" in predict(tmp_path / "s.tif", tmp_path / "b.tif", page=4)


@case("scene placed by RPC only", "mapped without coordinates, with a note", command="predict")
def _(tmp_path):
    sides = ("LINE", "SAMP", "LAT", "LONG", "HEIGHT")
    rpc = {f"{side}_{kind}": "1" for side in sides for kind in ("OFF", "SCALE")}
    rpc |= {f"{side}_{part}_COEFF": " ".join(["0"] * 20) for side in sides[:2] for part in ("NUM", "DEN")}
    source = tif(
        tmp_path / "s.tif",
        pixels(),
        crs=None,
        transform=None,
        after=lambda file: file.update_tags(ns="RPC", **rpc),
    )
    assert "placed by RPCs only, which are not applied" in predict(source, tmp_path / "map.tif")


@case("float32 or int16 pixels, model of 8 bit", "refused; `--scale-range` states the scaling, NaN has no label",
      command="predict")  # fmt: skip
def _(tmp_path):
    for dtype in ("float32", "int16"):
        array = (pixels().astype(np.float32) - 100).astype(dtype)
        if dtype == "float32":
            array[:, :30, :40] = np.nan
        source = tif(tmp_path / f"{dtype}.tif", array)
        assert "--scale-range" in predict(source, tmp_path / f"{dtype}.map.tif")
        assert predict(source, tmp_path / f"{dtype}.map.tif", scale_range=(-100.0, 155.0)) == ""
        result = read(tmp_path / f"{dtype}.map.tif")
        assert ((result == 255) == np.isnan(array[0].astype(np.float32))).all()
        assert (result == expected(pixels()))[40:, 50:].mean() > 0.999


@case("pixels of 5 m, model of 0.3 m", "a warning before the work", command="predict")
def _(tmp_path):
    source = tif(tmp_path / "s.tif", pixels(), transform=Affine(5, 0, 0, 0, -5, 0))
    text = predict(source, tmp_path / "map.tif", model(gsd=0.3))
    assert "pixels of 5 m, the model was trained with 0.3 m: things look 17 times too small" in text


@case("scene in degrees at 60 degrees north (pixels half as wide as high)", "a warning", command="predict")
def _(tmp_path):
    source = tif(tmp_path / "s.tif", pixels(), crs="EPSG:4326", transform=Affine(1e-5, 0, 10, 0, -1e-5, 60))
    for options in ({}, {"resample": True}):
        text = predict(source, tmp_path / f"{len(options)}.tif", model(gsd=0.6), **options)
        assert "pixels are 0.557 m wide and 1.11 m high on the ground" in text


@case("`--resample` of pixels of 9.7 km, model of 0.3 m", "refused with the arithmetic", command="predict")
def _(tmp_path):
    source = tif(tmp_path / "s.tif", pixels(), transform=Affine(9700, 0, 0, 0, -9700, 0))
    text = predict(source, tmp_path / "map.tif", model(gsd=0.3), resample=True)
    assert f"turns {HEIGHT} x {WIDTH} pixels into 4,138,667 x 6,208,000: 32,333 times enlarged" in text


@case("windows without number: `--window 32 --overlap 0.97` over a large scene", "refused with the arithmetic",
      command="predict")  # fmt: skip
def _(tmp_path):
    source = tif(tmp_path / "s.tif", np.zeros((1, 2000, 2000), np.uint8), compress="deflate")
    text = predict(source, tmp_path / "map.tif", Predictor(LocalStub(1), model_info(bands=1), overlap=0.97))
    assert "are 3,876,961 windows, at most 2,000,000" in text
    assert "would take 108 h" in text


@case(
    "model of a recipe with `data.custom.nodata` or `band_order: positions`",
    "scenes are read in the same way",
    command="predict",
)
def _(tmp_path):
    def tag(file):
        file.descriptions = ("blue", "green", "red")

    image = pixels()
    image[:, :40] = 0
    source = tif(tmp_path / "s.tif", image, after=tag)
    learnt = Predictor(
        LocalStub(bands=3), replace(model_info(), reading={"nodata": 0, "band_order": "positions"})
    )
    assert "pixels of value 0 hold no data" in predict(source, tmp_path / "map.tif", learnt)
    result = read(tmp_path / "map.tif")
    assert (result[:40] == 255).all()
    assert (result[48:] == expected(image)[48:]).mean() > 0.99


@case(
    "scene with ground control points and a transform (VRT)", "the map keeps the transform", command="predict"
)
def _(tmp_path):
    part = tif(tmp_path / "part.tif", pixels())
    points = "".join(f'<GCP Pixel="{n % 2}" Line="{n // 2}" X="{n % 2}" Y="{n // 2}"/>' for n in range(3))
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{n}"><SimpleSource><SourceFilename>{part}</SourceFilename>'
        f"<SourceBand>{n}</SourceBand></SimpleSource></VRTRasterBand>"
        for n in (1, 2, 3)
    )
    place = f"<SRS>{CRS}</SRS><GeoTransform>{', '.join(map(str, PLACE.to_gdal()))}</GeoTransform>"
    text = f'<VRTDataset rasterXSize="{WIDTH}" rasterYSize="{HEIGHT}">{place}'
    text += f'<GCPList Projection="EPSG:4326">{points}</GCPList>{bands}</VRTDataset>'
    (tmp_path / "s.vrt").write_text(text)
    assert predict(tmp_path / "s.vrt", tmp_path / "map.tif") == ""
    with rasterio.open(tmp_path / "map.tif") as file:
        assert (file.crs, file.transform) == (CRS, PLACE)


@case(
    "values far from those of the training (other units, tags of scale that are not applied)",
    "mapped, with a warning before the work; `--scale-range` states the scaling",
    command="predict",
)
def _(tmp_path):
    source = tif(
        tmp_path / "s.tif", pixels(dtype="int16"), after=lambda file: setattr(file, "scales", (0.01,) * 3)
    )
    learnt = Predictor(
        LocalStub(bands=3), replace(model_info(dtype="float32"), normalization={"scale": [[0, 1]] * 3})
    )
    text = predict(source, tmp_path / "map.tif", learnt)
    assert "tags of scale and offset in the file are not applied" in text
    assert "values in the middle are 1 to 254, the model was trained with 0 to 1" in text
    assert "--scale-range" in text
    text = predict(source, tmp_path / "b.tif", learnt, scale_range=(0.0, 255.0))
    assert "values in the middle" not in text
    low = tif(tmp_path / "low.tif", pixels(dtype="uint16"))
    learnt = Predictor(
        LocalStub(bands=3, max_value=65535.0),
        replace(model_info(dtype="uint16"), normalization={"max_value": 65535.0}),
    )
    assert "trained with 0 to 65535" in predict(low, tmp_path / "c.tif", learnt)
    fits = tif(tmp_path / "fits.tif", pixels(dtype="uint16") * 200)
    assert predict(fits, tmp_path / "d.tif", learnt) == ""


@case("OUTPUT with `!` or `;` in its path and `--polygons`", "refused before the work", command="predict")
def _(tmp_path):
    source = tif(tmp_path / "s.tif", pixels())
    assert "is not possible for vector files" in predict(
        source, tmp_path / "a!b.tif", polygons=PolygonOptions()
    )
    assert [path.name for path in tmp_path.iterdir()] == ["s.tif"]


@case("`--nodata -9999` for a scene of 8 bit", "refused: it can never occur", command="predict")
def _(tmp_path):
    source = tif(tmp_path / "s.tif", pixels())
    for value in (-9999.0, 0.5, math.inf, math.nan):
        assert "allowed are 0 to 255" in predict(source, tmp_path / "map.tif", nodata=value)
    assert "allowed" not in predict(source, tmp_path / "map.tif", nodata=0.0)


@case(
    "a layer for `--area` or `--zones` in a CRS that cannot be projected", "refused, named", command="predict"
)
def _(tmp_path):
    local = rasterio.CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')
    box = np.array([shapely.box(0, 0, 9, 9)], object)
    write_features(tmp_path / "area.gpkg", "area", box, {}, local)
    source = tif(tmp_path / "s.tif", pixels())
    text = predict(source, tmp_path / "map.tif", area=str(tmp_path / "area.gpkg"))
    assert "area.gpkg (layer area): cannot be projected to EPSG:26914" in text


@case("`--min-area-m2` larger than the scene", "one class remains", command="predict")
def _(tmp_path):
    source = tif(tmp_path / "s.tif", pixels(height=20, width=30))
    assert predict(source, tmp_path / "map.tif", min_area_m2=1e6) == ""
    assert len(np.unique(read(tmp_path / "map.tif"))) == 1
    assert (
        predict(tif(tmp_path / "p.tif", pixels(height=1, width=1)), tmp_path / "b.tif", min_area_m2=9.0) == ""
    )

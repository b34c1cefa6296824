import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.crs import CRS

from d2ls.errors import ConfigError, D2LSError, DataError, StorageError
from d2ls.inference import Predictor
from pipeline.models import load_model
from pipeline.predict import main
from pipeline.prediction import map_scene as mapping
from pipeline.prediction.inputs import list_jobs
from pipeline.prediction.map_scene import map_scene
from pipeline.prediction.request import MapOptions, PredictRequest
from pipeline.prediction.run import map_scenes
from tests.inference_stubs import LocalStub, model_info, tiny_bundle

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

UTM = CRS.from_epsg(32632)
ROTATED = rasterio.Affine(0.4, 0.3, 100.25, 0.3, -0.4, 2000.75)
NORTH_UP = rasterio.Affine(0.5, 0, 100.25, 0, -0.5, 2000.75)


def pixels(bands=3, height=90, width=110, dtype="uint8", seed=0):
    top = 256 if dtype == "uint8" else 10_000
    return np.random.default_rng(seed).integers(1, top, (bands, height, width)).astype(dtype)


def scene_file(path: Path, array, names=None, **profile) -> Path:
    count, height, width = array.shape
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=count, dtype=array.dtype, **profile
    ) as file:
        file.write(array)
        if names:
            file.descriptions = names
    return path


def predictor(**options) -> Predictor:
    info = {key: options.pop(key) for key in ("gsd", "dtype", "bands") if key in options}
    top = 65535.0 if info.get("dtype") == "uint16" else 255.0
    return Predictor(LocalStub(bands=info.get("bands", 3), max_value=top), model_info(**info), **options)


def run(source, target, model=None, digest="d", **options):
    return map_scene(model or predictor(), str(source), str(target), MapOptions(**options), digest=digest)


def read(path):
    with rasterio.open(path) as file:
        return file.read(1)


def expected(array):
    return predictor(window=512).predict(np.ascontiguousarray(array.transpose(1, 2, 0)))


@pytest.mark.parametrize("transform", [NORTH_UP, ROTATED])
def test_a_geotiff_is_mapped_where_it_lies(tmp_path, transform) -> None:
    array = pixels()
    source = scene_file(tmp_path / "s.tif", array, crs=UTM, transform=transform)
    report = run(source, tmp_path / "out" / "map.tif")
    with rasterio.open(tmp_path / "out" / "map.tif") as file:
        assert file.crs == UTM
        assert file.transform == transform
        assert file.shape == (90, 110)
        actual = file.read(1)
    assert (actual == expected(array)).mean() > 0.999
    assert sum(report.pixels) == actual.size
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["map.tif", "map.tif.aux.xml"]


def test_sixteen_bits_rotated_with_a_nodata_edge(tmp_path) -> None:
    array = pixels(dtype="uint16")
    array[:, :, :25] = 0
    source = scene_file(tmp_path / "s.tif", array, crs=UTM, transform=ROTATED, nodata=0)
    report = run(source, tmp_path / "map.tif", predictor(dtype="uint16"), probabilities=True)
    actual = read(tmp_path / "map.tif")
    assert ((actual == 255) == (np.arange(110) < 25)).all()
    assert report.pixels[-1] == 90 * 25
    with rasterio.open(tmp_path / "map.probabilities.tif") as file:
        assert file.count == 4
        steps = file.read()
    assert (steps[:, :, :25] == 255).all()
    agree = steps.argmax(0) == actual
    assert agree[:, 25:].mean() > 0.99


def test_no_data_at_all_is_a_valid_scene(tmp_path) -> None:
    source = scene_file(tmp_path / "s.tif", np.zeros((3, 50, 60), np.uint8), nodata=0)
    run(source, tmp_path / "map.tif")
    assert (read(tmp_path / "map.tif") == 255).all()


def test_without_coordinates_png_in_png_out(tmp_path) -> None:
    array = pixels(height=40, width=33)
    Image.fromarray(array.transpose(1, 2, 0)).save(tmp_path / "s.png")
    run(tmp_path / "s.png", tmp_path / "map.png", overlay=True)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "map.png")), expected(array))
    assert Image.open(tmp_path / "map.overlay.jpg").size == (33, 40)


def test_bands_are_chosen_by_number_or_name_or_refused(tmp_path) -> None:
    array = pixels(4)
    plain = scene_file(tmp_path / "plain.tif", array, photometric="MINISBLACK")
    with pytest.raises(DataError, match=r"4 band\(s\), the model takes 3 .*--bands 1,2,3"):
        run(plain, tmp_path / "a.tif")
    run(plain, tmp_path / "b.tif", bands=(4, 2, 1))
    assert (read(tmp_path / "b.tif") == expected(array[[3, 1, 0]])).mean() > 0.999
    named = scene_file(tmp_path / "named.tif", array, names=("nir", "Blue", "green", "red"))
    report = run(named, tmp_path / "c.tif")
    assert "[4, 3, 2] chosen by their names" in report.notes[0]
    assert (read(tmp_path / "c.tif") == expected(array[[3, 2, 1]])).mean() > 0.999
    colours = scene_file(tmp_path / "rgb.tif", array, photometric="RGB", alpha="unspecified")
    assert "[1, 2, 3] chosen by their names" in run(colours, tmp_path / "d.tif").notes[0]
    marked = scene_file(tmp_path / "rgba.tif", array, photometric="RGB", alpha="yes")
    assert run(marked, tmp_path / "f.tif").notes == (
        "band 4 is taken as transparency: where it is 0, no label",
    )
    taken = run(marked, tmp_path / "g.tif", predictor(bands=4))
    assert taken.notes == ("band 4 is marked as transparency and taken as nir",)
    with pytest.raises(DataError, match="bands 1 to 4"):
        run(plain, tmp_path / "e.tif", bands=(1, 2, 5))


def test_other_depths_need_a_scale_range(tmp_path) -> None:
    array = pixels(dtype="uint16")
    source = scene_file(tmp_path / "s.tif", array)
    with pytest.raises(DataError, match=r"uint16, the model was trained on uint8.*--scale-range"):
        run(source, tmp_path / "map.tif")
    run(source, tmp_path / "map.tif", scale_range=(0.0, 10_000.0))
    scaled = np.rint(array * np.float32(255 / 10_000)).astype(np.uint8)
    assert (read(tmp_path / "map.tif") == expected(scaled)).mean() > 0.999
    with pytest.raises(ConfigError, match="low value first"):
        run(source, tmp_path / "other.tif", scale_range=(5.0, 5.0))
    assert not (tmp_path / "other.tif.parts").exists()


def test_another_ground_distance_is_warned_about_and_resampled_on_request(tmp_path) -> None:
    array = np.kron(pixels(height=30, width=40), np.ones((1, 4, 4), np.uint8))
    source = scene_file(tmp_path / "s.tif", array, crs=UTM, transform=NORTH_UP)
    model = predictor(gsd=1.0)
    assert "consider --resample" in run(source, tmp_path / "a.tif", model).notes[0]
    report = run(source, tmp_path / "b.tif", model, resample=True, probabilities=True)
    assert "resampled from 0.5 m per pixel to 1 m" in report.notes[0]
    with rasterio.open(tmp_path / "b.tif") as file:
        assert file.transform == NORTH_UP
        assert file.shape == (120, 160)
        actual = file.read(1)
    half = expected(np.kron(pixels(height=30, width=40), np.ones((1, 2, 2), np.uint8)))
    assert (actual[::2, ::2] == half).mean() > 0.8
    np.testing.assert_array_equal(actual, np.kron(actual[::2, ::2], np.ones((2, 2), np.uint8)))
    with pytest.raises(ConfigError, match="ground sampling distance"):
        run(source, tmp_path / "c.tif", predictor(), resample=True)


def test_an_interrupted_map_goes_on_and_ends_the_same(tmp_path, monkeypatch) -> None:
    source = scene_file(tmp_path / "s.tif", pixels(height=200), crs=UTM, transform=NORTH_UP)
    run(source, tmp_path / "whole.tif", probabilities=True)
    bands, original = [], mapping.Parts.write

    def failing(self, index, **rasters):
        if index == 4:
            raise StorageError("the disk is full")
        bands.append(index)
        original(self, index, **rasters)

    monkeypatch.setattr(mapping.Parts, "write", failing)
    with pytest.raises(StorageError, match="disk is full"):
        run(source, tmp_path / "map.tif", probabilities=True)
    assert not (tmp_path / "map.tif").exists()
    assert (tmp_path / "map.tif.parts").is_dir()
    monkeypatch.setattr(mapping.Parts, "write", lambda *a, **k: (bands.append(a[1]), original(*a, **k)))
    run(source, tmp_path / "map.tif", probabilities=True)
    assert bands == list(range(len(bands)))
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), read(tmp_path / "whole.tif"))
    assert (tmp_path / "map.probabilities.tif").read_bytes() == (
        tmp_path / "whole.probabilities.tif"
    ).read_bytes()
    assert not (tmp_path / "map.tif.parts").exists()


def test_a_finished_map_is_left_alone_until_something_changes(tmp_path) -> None:
    source = scene_file(tmp_path / "s.tif", pixels())
    target = tmp_path / "map.tif"
    assert not run(source, target).skipped
    assert run(source, target).skipped
    assert not run(source, target, overwrite=True).skipped
    scene_file(source, pixels(seed=3))
    assert not run(source, target).skipped
    assert (read(target) == expected(pixels(seed=3))).mean() > 0.999
    made = target.read_bytes()
    for words, change in (
        ("made with another model", {"digest": "another model"}),
        ("made with other options", {"model": predictor(window=48)}),
        ("made with other options", {"bands": (3, 2, 1)}),
    ):
        with pytest.raises(ConfigError, match=rf"map\.tif: is a map {words}.*--overwrite"):
            run(source, target, **change)
    assert target.read_bytes() == made
    assert not run(source, target, digest="another model", overwrite=True).skipped


def test_a_scene_that_vanishes_or_changes_meanwhile_leaves_no_map(tmp_path) -> None:
    model = predictor()
    for number, change in enumerate((Path.unlink, lambda path: path.write_bytes(b"x"))):
        source = scene_file(tmp_path / f"{number}.tif", pixels())
        with pytest.raises(DataError, match=r"was deleted|changed|cannot be read"):
            map_scene(
                model, str(source), str(tmp_path / "map.tif"), MapOptions(), digest="d",
                progress=lambda p, source=source, change=change: change(source) if source.exists() else None,
            )  # fmt: skip
        assert not (tmp_path / "map.tif").exists()


def test_folders_keep_their_layout(tmp_path) -> None:
    for name in ("a/10.tif", "a/2.tif", "b/x.jpg", "b/notes.txt", "b/.hidden.tif"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"")
    source = str(tmp_path / "in")
    out = str(tmp_path / "out")
    assert [target for _, target in list_jobs(source, out)] == [
        f"{out}/a/2.tif",
        f"{out}/a/10.tif",
        f"{out}/b/x.tif",
    ]
    assert [t for _, t in list_jobs(f"{source}/a/*.tif", out, "png")] == [f"{out}/2.png", f"{out}/10.png"]
    assert [t for _, t in list_jobs(f"{source}/**/*.jpg", out)] == [f"{out}/b/x.tif"]
    assert list_jobs(f"{source}/a/2.tif", out) == [(f"{source}/a/2.tif", f"{out}/2.tif")]
    assert list_jobs(f"{source}/a/2.tif", "m.png") == [(f"{source}/a/2.tif", "m.png")]


def test_clashing_maps_are_refused(tmp_path) -> None:
    for name in ("1.tif", "1.jpg"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ConfigError, match="map of both"):
        list_jobs(str(tmp_path), str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="replace a scene"):
        list_jobs(str(tmp_path / "1.tif"), str(tmp_path))
    with pytest.raises(ConfigError, match="need a folder"):
        list_jobs(str(tmp_path / "*"), str(tmp_path / "out.tif"))
    with pytest.raises(DataError, match="no image here"):
        list_jobs(str(tmp_path / "*.webp"), str(tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"map\.jpg: maps are written as \.tif"):
        list_jobs(str(tmp_path / "1.tif"), str(tmp_path / "map.jpg"))
    for names in (("", "map.tif"), (str(tmp_path), "")):
        with pytest.raises(ConfigError, match="is empty"):
            list_jobs(*names)


def test_a_link_to_itself_is_no_scene(tmp_path) -> None:
    (tmp_path / "loop.tif").symlink_to("loop.tif")
    with pytest.raises(DataError, match=r"loop\.tif: no such file or folder\. Name an image"):
        list_jobs(str(tmp_path / "loop.tif"), str(tmp_path / "map.tif"))
    with pytest.raises(DataError, match="no such file"):
        run(tmp_path / "loop.tif", tmp_path / "map.tif")


def test_a_folder_of_scenes_that_cannot_be_listed_is_refused(tmp_path: Path, closed_folder) -> None:
    (tmp_path / closed_folder).mkdir()
    with pytest.raises(DataError, match="closed: this folder cannot be read: Permission denied"):
        list_jobs(str(tmp_path), str(tmp_path / "maps"))


def test_one_bad_scene_does_not_stop_the_others(tmp_path) -> None:
    model = str(tiny_bundle(tmp_path / "model", model_info().classes))
    scene_file(tmp_path / "in" / "a.tif", pixels())
    (tmp_path / "in" / "b.tif").write_bytes(b"II*\0 no")
    scene_file(tmp_path / "in" / "c.tif", pixels(seed=1))
    request = PredictRequest(model, str(tmp_path / "in"), str(tmp_path / "out"))
    results = dict(map_scenes(request, list_jobs(request.source, request.target)))
    results = {source: results[source, target] for source, target in sorted(results)}
    kinds = [isinstance(result, D2LSError) for result in results.values()]
    assert kinds == [False, True, False]
    with pytest.raises(DataError, match="1 of 3 scenes"):
        main([model, str(tmp_path / "in"), str(tmp_path / "out")])


def test_the_command_gives_what_python_gives(tmp_path, capsys) -> None:
    model = str(tiny_bundle(tmp_path / "model", model_info().classes))
    array = pixels()
    source = scene_file(tmp_path / "s.tif", array)
    assert main([model, str(source), str(tmp_path / "map.tif"), "--window", "48", "--tta", "flips"]) == 0
    inside = load_model(model, window=48, tta="flips").predict(np.ascontiguousarray(array.transpose(1, 2, 0)))
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), inside)
    assert "90 x 110" in capsys.readouterr().err
    assert main([model, str(source), str(tmp_path / "map.tif"), "--window", "48", "--tta", "flips"]) == 0
    assert "finished before" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bands", "1,x"], "--bands 1,x"),
        (["--scale-range", "1"], "low and the high"),
        (["--scale-range", "0,inf"], "low and the high"),
        (["--tta", "d4"], "no such preset"),
        (["--overlap", "1.5"], "overlap 1.5"),
        (["--batch-size", "0"], "at least 1"),
    ],
)
def test_impossible_options_are_refused_before_anything_is_read(words, message) -> None:
    with pytest.raises(ConfigError, match=message):
        main(["nowhere", "nothing.tif", "map.tif", *words])


def test_best_checkpoint_of_a_run_folder_is_found(tmp_path) -> None:
    tiny_bundle(tmp_path / "run" / "checkpoints" / "step-00000004", model_info().classes)
    best = tmp_path / "run" / "checkpoints" / "best.json"
    best.write_text(json.dumps({"checkpoint": "step-00000004"}))
    for uri in (
        tmp_path / "run",
        tmp_path / "run" / "checkpoints",
        tmp_path / "run" / "checkpoints" / "step-00000004",
    ):
        assert load_model(str(uri)).num_classes == 4
    assert load_model(f"file://{tmp_path}/run").num_classes == 4
    best.write_text("{}")
    with pytest.raises(D2LSError, match="does not name a checkpoint"):
        load_model(str(tmp_path / "run"))


@pytest.mark.parametrize("name", ["loveda", "uavid"])
def test_a_submission_is_made_and_checked(tmp_path, monkeypatch, name) -> None:
    from dataclasses import replace

    from pipeline.prediction import submission

    rules = replace(submission.RULES[name], count=2, sizes=((64, 80),))
    monkeypatch.setattr(submission, "RULES", {name: rules})
    files = ["Urban/images_png/1.png", "Rural/images_png/2.png"]
    files = files if name == "loveda" else ["seq21/Images/000000.png", "seq22/Images/000100.png"]
    for number, file in enumerate(files):
        (tmp_path / "in" / file).parent.mkdir(parents=True)
        Image.fromarray(pixels(height=64, width=80, seed=number).transpose(1, 2, 0)).save(
            tmp_path / "in" / file
        )
    model = str(tiny_bundle(tmp_path / "model", rules.classes))
    target = tmp_path / ("out.zip" if name == "loveda" else "out")
    words = [model, str(tmp_path / "in"), str(target), "--submission", name]
    assert main(words) == 0
    assert submission.problems(rules, target) == []
    assert not (tmp_path / f"{target.name}.maps").exists()
    with pytest.raises(ConfigError, match="exists already; name another OUTPUT"):
        main(words)
    words[2] = str(tmp_path / "another")
    notes = tmp_path / "another.maps" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    assert main(words) == 0
    assert [file.name for file in notes.parent.iterdir()] == ["notes.txt"]
    words[2] = str(tmp_path / "third.zip")
    other = str(tiny_bundle(tmp_path / "other", model_info().classes))
    with pytest.raises(ConfigError, match="wants"):
        main([other, *words[1:]])
    monkeypatch.setattr(submission, "RULES", {name: replace(rules, count=3)})
    with pytest.raises(DataError, match="2 images, 3 are expected"):
        main(words)


def test_a_value_without_data_can_be_named(tmp_path) -> None:
    array = pixels()
    array[:, :, :25] = 0
    source = scene_file(tmp_path / "s.tif", array)
    run(source, tmp_path / "map.tif", nodata=0.0)
    trained = Predictor(LocalStub(), dataclasses.replace(model_info(), reading={"nodata": 0}))
    assert "value 0 hold no data, as in the training" in run(source, tmp_path / "same.tif", trained).notes[0]
    for name in ("map.tif", "same.tif"):
        assert ((read(tmp_path / name) == 255) == (np.arange(110) < 25)).all()

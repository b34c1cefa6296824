"""The files that a mapping may replace, how it finds its own maps, and the lock on a map."""

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from PIL import Image
from pyarrow import fs

from d2ls import storage
from d2ls.errors import ConfigError, DataError, StorageError
from d2ls.inference import Predictor, span_count
from d2ls.inference.sliding_window import spans
from pipeline.models import read_files
from pipeline.models.workers import ModelWorker
from pipeline.predict import main
from pipeline.prediction import map_scene as mapping
from pipeline.prediction import plan as planning
from pipeline.prediction import products
from pipeline.prediction.inputs import list_jobs
from pipeline.prediction.map_scene import map_scene
from pipeline.prediction.outputs import BusyError, Outputs, hold
from pipeline.prediction.provenance import read_provenance
from pipeline.prediction.request import MapOptions
from tests.inference_stubs import LocalStub, model_info, tiny_bundle

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def scene_file(path: Path, seed=0, height=90, width=70, **profile) -> Path:
    array = np.random.default_rng(seed).integers(1, 256, (3, height, width)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=3, dtype="uint8", **profile
    ) as file:
        file.write(array)
    return path


def run(source, target, predictor=None, **options):
    predictor = predictor or Predictor(LocalStub(), model_info())
    return map_scene(predictor, str(source), str(target), MapOptions(**options), digest="d")


def read(path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(tiny_bundle(tmp_path_factory.mktemp("model"), model_info().classes))


@pytest.fixture
def store(tmp_path, monkeypatch) -> Path:
    """Maps `s3://` to a folder, so that the code for object stores runs."""
    local, top = storage.resolve, tmp_path / "store"
    (top / "b").mkdir(parents=True)
    inside = fs.PyFileSystem(
        fs.FSSpecHandler(
            DirFileSystem(str(top), LocalFileSystem(auto_mkdir=True))
        )  # makes folders as it writes
    )
    monkeypatch.setattr(
        storage, "resolve", lambda uri: (inside, str(uri)[5:]) if str(uri).startswith("s3:") else local(uri)
    )
    return top / "b"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


# --- nothing of the user is replaced -----------------------------------------------------------------------------


@pytest.mark.parametrize("scenes", [2, 3])
def test_a_forgotten_output_after_an_expanded_pattern_touches_nothing(tmp_path, model, scenes) -> None:
    files = [str(scene_file(tmp_path / f"{n}.tif", n)) for n in range(scenes)]
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=r"quote a pattern: 'scenes/\*\.tif'|put quotes around it"):
        main([model, *files])
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "name", ["map.tif", "map.png", "map.probabilities.tif", "map.overlay.jpg", "map.tif.aux.xml"]
)
@pytest.mark.parametrize("kind", ["text", "picture", "empty"])
def test_a_file_of_the_user_is_never_replaced(tmp_path, name, kind) -> None:
    source = scene_file(tmp_path / "scene.tif")
    if kind == "picture" and not name.endswith("xml"):
        Image.fromarray(np.arange(75, dtype=np.uint8).reshape(5, 5, 3)).save(tmp_path / name)
    else:
        (tmp_path / name).write_text("" if kind == "empty" else "my notes")
    before = contents(tmp_path)
    target = tmp_path / ("map.png" if name == "map.png" else "map.tif")
    with pytest.raises(ConfigError, match=rf"{name}: exists and is not .*--overwrite"):
        run(source, target, probabilities=True, overlay=True)
    assert contents(tmp_path) == before
    run(source, target, probabilities=True, overlay=True, overwrite=True)
    assert contents(tmp_path)[name] != before[name]


def test_a_file_that_appears_during_the_work_is_kept(tmp_path, monkeypatch) -> None:
    source, target = scene_file(tmp_path / "scene.tif"), tmp_path / "map.tif"
    original = mapping.stitch

    def slow(*words, **options):
        original(*words, **options)
        target.write_text("mine")

    monkeypatch.setattr(mapping, "stitch", slow)
    with pytest.raises(ConfigError, match="is not a map of this program"):
        run(source, target)
    assert target.read_text() == "mine"
    target.unlink()
    run(source, target)
    assert read(target).shape == (90, 70)


def test_a_map_of_another_scene_is_kept(tmp_path) -> None:
    one, two = scene_file(tmp_path / "a" / "s.tif", 1), scene_file(tmp_path / "b" / "s.tif", 2)
    run(one, tmp_path / "map.tif", overlay=True, probabilities=True)
    before = contents(tmp_path)
    for options in ({}, {"overlay": True}):
        with pytest.raises(ConfigError, match=r"is a map of another scene \(s\.tif\)"):
            run(two, tmp_path / "map.tif", **options)
    assert contents(tmp_path) == before
    one.rename(tmp_path / "s.tif")  # moved, the same scene still
    assert run(tmp_path / "s.tif", tmp_path / "map.tif").skipped


def test_companions_are_added_to_a_map_of_the_same_scene(tmp_path) -> None:
    source = scene_file(tmp_path / "scene.tif")
    run(source, tmp_path / "map.tif")
    assert not run(source, tmp_path / "map.tif", overlay=True).skipped
    assert run(source, tmp_path / "map.tif", overlay=True).skipped
    for name in ("map.tif", "map.overlay.jpg"):
        assert read_provenance(str(tmp_path / name)).scene == "scene.tif"


@pytest.mark.parametrize("name", ["notes.txt", "plan.json", "000000.labels.bak"])
def test_a_folder_of_the_user_where_parts_would_lie_is_kept(tmp_path, name) -> None:
    source = scene_file(tmp_path / "scene.tif")
    (tmp_path / "map.tif.parts").mkdir()
    (tmp_path / "map.tif.parts" / name).write_text("{}")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=r"map\.tif\.parts: .* is not of this program"):
            run(source, tmp_path / "map.tif", overwrite=overwrite)
    assert (tmp_path / "map.tif.parts" / name).read_text() == "{}"


def test_an_input_is_never_an_output_whatever_its_name(tmp_path, model) -> None:
    source = scene_file(tmp_path / "scene.tif")
    os.link(source, tmp_path / "hard.tif")
    (tmp_path / "soft.tif").symlink_to(source)
    before = contents(tmp_path)
    for name in ("scene.tif", "hard.tif", "soft.tif", "x/../scene.tif"):
        with pytest.raises(ConfigError, match="would replace a scene"):
            main([model, str(source), f"{tmp_path}/{name}", "--overwrite"])
    scene_file(tmp_path / "map.probabilities.tif")
    scene_file(tmp_path / "map.jpg")
    with pytest.raises(ConfigError, match="would replace a scene"):
        list_jobs(f"{tmp_path}/map*", str(tmp_path))
    assert {name: contents(tmp_path)[name] for name in before} == before


def test_a_folder_named_like_a_map_is_refused_before_the_work(tmp_path, model) -> None:
    source = scene_file(tmp_path / "scene.tif")
    (tmp_path / "x.tif").mkdir()
    for target in ("x.tif", "x.tif/"):
        with pytest.raises(ConfigError, match=r"is a folder with the name of a map\. Name a file in it"):
            main(["no/such/model", str(source), f"{tmp_path}/{target}"])
    (tmp_path / "maps").write_text("")
    with pytest.raises(ConfigError, match="is a file; name a map"):
        main(["no/such/model", str(source), str(tmp_path / "maps")])


# --- its own maps are found --------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["scenes/maps", "scenes", "maps"])
@pytest.mark.parametrize("kind", ["tif", "png"])
def test_a_second_run_finds_its_own_maps_wherever_they_lie(tmp_path, model, capsys, where, kind) -> None:
    for number, name in enumerate(("scenes/a.jpg", "scenes/below/b.jpg")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        array = np.random.default_rng(number).integers(0, 256, (40, 50, 3)).astype(np.uint8)
        Image.fromarray(array).save(tmp_path / name)
    words = [model, str(tmp_path / "scenes"), str(tmp_path / where), "--format", kind, "--overlay"]
    words += ["--probabilities"]
    assert main(words) == 0
    before = contents(tmp_path)
    capsys.readouterr()
    assert main(words) == 0
    assert capsys.readouterr().err.count("finished before") == 2
    assert contents(tmp_path) == before
    (tmp_path / "scenes" / "a.jpg").unlink()
    assert main([model, str(tmp_path / "scenes"), str(tmp_path / "other")]) == 0
    assert [f.name for f in sorted((tmp_path / "other").rglob("*.tif"))] == ["b.tif"]


def test_a_map_is_no_scene(tmp_path, model) -> None:
    run(scene_file(tmp_path / "scene.tif"), tmp_path / "map.tif")
    with pytest.raises(ConfigError, match="is a map that was made here, not an image"):
        main([model, str(tmp_path / "map.tif"), str(tmp_path / "map2.tif")])


def test_hidden_files_and_folders_are_left_out_as_by_shard(tmp_path) -> None:
    for name in ("a.tif", ".b.tif", ".hidden/c.tif", "__MACOSX/d.tif", "below/e.tif", "below/.f/g.tif"):
        scene_file(tmp_path / ".top" / name, height=4, width=4)
    (tmp_path / ".top" / "loop").symlink_to(tmp_path / ".top")
    top = str(tmp_path / ".top")
    for source in (top, f"{top}/**/*.tif"):
        result = sorted(Path(job[0]).name for job in list_jobs(source, str(tmp_path / "maps")))
        assert result == ["a.tif", "e.tif"], source


# --- interrupted, at once, on a full disk, on changed scenes -----------------------------------------------------


@pytest.mark.parametrize("kind", ["tif", "png"])
def test_a_kill_while_the_map_is_written_leaves_no_file_for_ever(tmp_path, kind) -> None:
    source = scene_file(tmp_path / "scene.tif")
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from tests.unit.pipeline.prediction.test_outputs import run\n"
        "from pipeline.prediction.parts import Parts; from d2ls import storage\n"
        "storage.write_bytes = lambda uri, content: open(uri, 'wb').write(content)\n"
        "run(*sys.argv[1:])"
    )
    subprocess.run(
        [sys.executable, "-c", code, source, tmp_path / f"map.{kind}"], cwd=Path(__file__).parents[4]
    )
    names = {file.name for file in (tmp_path / f"map.{kind}.parts").iterdir()}
    assert any(".tmp" in name for name in names)
    assert {"scene.tif", f"map.{kind}.parts"} >= {f.name for f in tmp_path.iterdir()} - {"map.tif.aux.xml"}
    run(source, tmp_path / f"map.{kind}")
    assert {f.name for f in tmp_path.iterdir()} - {"map.tif.aux.xml"} == {"scene.tif", f"map.{kind}"}


def test_killed_between_the_last_band_and_the_map_it_goes_on(tmp_path, monkeypatch) -> None:
    source = scene_file(tmp_path / "scene.tif")
    run(source, tmp_path / "whole.tif")
    monkeypatch.setattr(products, "write_labels", _killed)
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "map.tif")
    monkeypatch.undo()
    predictor = Predictor(LocalStub(), model_info())
    run(source, tmp_path / "map.tif", predictor)
    assert predictor.network.seen == []
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), read(tmp_path / "whole.tif"))
    assert not (tmp_path / "map.tif.parts").exists()


def _killed(*_words, **_options):
    raise KeyboardInterrupt


@pytest.mark.parametrize("remote", [False, True])
def test_a_scene_replaced_between_kill_and_repeat_starts_anew(tmp_path, monkeypatch, store, remote) -> None:
    top = store if remote else tmp_path / "scenes"
    source = scene_file(top / "scene.tif", seed=1)
    uri = "s3://b/scene.tif" if remote else str(source)
    target = "s3://b/out/map.tif" if remote else str(tmp_path / "map.tif")
    original = mapping.Parts.write

    def failing(self, index, **rasters):
        if index == 2:
            raise KeyboardInterrupt
        original(self, index, **rasters)

    monkeypatch.setattr(mapping.Parts, "write", failing)
    with pytest.raises(KeyboardInterrupt):
        run(uri, target)
    monkeypatch.setattr(mapping.Parts, "write", original)
    before = source.stat()
    scene_file(source, seed=2)
    assert source.stat().st_size == before.st_size
    run(uri, target)
    run(source, tmp_path / "wanted.tif")
    made = store / "out" / "map.tif" if remote else target
    np.testing.assert_array_equal(read(made), read(tmp_path / "wanted.tif"))


def test_two_mappings_at_once_the_second_is_refused(tmp_path, model) -> None:
    source, target = scene_file(tmp_path / "scene.tif"), tmp_path / "map.tif"
    code = (
        "import sys, time; from pipeline.prediction.outputs import Outputs, hold\n"
        "with hold(Outputs(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout.readline() == b"held\n"
            with pytest.raises(BusyError, match="is being mapped by another process now"):
                run(source, target)
            with pytest.raises(StorageError, match="is being mapped by another process now"):
                main([model, str(source), str(target)])
        finally:
            other.send_signal(signal.SIGKILL)
    assert not target.exists()
    run(source, target)  # a killed process released its lock
    assert not (tmp_path / "map.tif.parts").exists()


def test_in_an_object_store_the_second_is_refused_too(store, monkeypatch) -> None:
    outputs, record = Outputs("s3://b/map.tif"), store / "map.tif.parts" / "in-use.json"
    with hold(outputs, owner="one"):
        with pytest.raises(BusyError), hold(outputs, owner="two"):
            pass
        with hold(outputs, owner="one"):  # another worker of the same run goes on with it
            pass
    assert not record.parent.exists()
    record.parent.mkdir()
    record.write_text(json.dumps({"process": "elsewhere:1:x", "owner": "three", "time": 0}))
    with hold(outputs):
        assert "elsewhere" not in record.read_text()


def test_a_full_disk_leaves_what_can_go_on(tmp_path, monkeypatch) -> None:
    source = scene_file(tmp_path / "scene.tif", height=200)
    run(source, tmp_path / "whole.tif")
    original, room = storage.write_bytes, [4]

    def full(uri, content):
        room[0] -= 1
        if room[0] < 0:
            raise StorageError(f"{uri}: {os.strerror(errno.ENOSPC)}")
        original(uri, content)

    monkeypatch.setattr(storage, "write_bytes", full)
    for space in (0, 4, 2, 100):  # at the plan, among the rows, among the rows, nowhere
        room[0] = space
        try:
            run(source, tmp_path / "map.tif")
        except StorageError as error:
            assert "No space" in str(error)  # noqa: PT017
            assert space < 100
            assert not (tmp_path / "map.tif").exists()
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), read(tmp_path / "whole.tif"))
    assert not (tmp_path / "map.tif.parts").exists()


def test_a_changed_scene_replaces_its_own_old_map(tmp_path) -> None:
    source = scene_file(tmp_path / "scene.tif", seed=1)
    run(source, tmp_path / "map.tif")
    scene_file(source, seed=2)
    assert run(source, tmp_path / "map.tif").notes == ("changed since it was mapped, it is mapped again",)
    run(source, tmp_path / "wanted.tif")
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), read(tmp_path / "wanted.tif"))


# --- object stores -----------------------------------------------------------------------------------------------


def test_remote_scenes_behave_like_local_ones(tmp_path, store, model, monkeypatch, capsys) -> None:
    scene_file(store / "a.tif", crs="EPSG:32632", transform=rasterio.Affine(0.5, 0, 100, 0, -0.5, 200))
    Image.fromarray(np.arange(3 * 40 * 50, dtype=np.uint8).reshape(40, 50, 3)).save(store / "c.png")
    (store / "c.pgw").write_text("0.5\n0\n0\n-0.5\n100.5\n2000.5\n")
    monkeypatch.chdir(tmp_path)
    assert main([model, "s3://b/a.tif", "map.tif"]) == 0
    assert read(tmp_path / "map.tif").shape == (90, 70)
    assert main([model, str(store / "a.tif"), "local.tif"]) == 0
    np.testing.assert_array_equal(read("map.tif"), read("local.tif"))
    words = [model, "s3://b", "s3://b/maps", "--overlay"]
    assert main(words) == 0
    names = ["a.overlay.jpg", "a.tif", "a.tif.aux.xml", "c.overlay.jpg", "c.tif", "c.tif.aux.xml"]
    assert sorted(contents(store / "maps")) == names
    with rasterio.open(store / "maps" / "c.tif") as file:
        assert file.transform == rasterio.Affine(0.5, 0, 100.25, 0, -0.5, 2000.75)
    capsys.readouterr()
    before = contents(store)
    assert main(words) == 0
    assert capsys.readouterr().err.count("finished before") == 2
    assert contents(store) == before
    (store / "text.tif").write_text("mine")
    with pytest.raises(ConfigError, match="is not a map of this program"):
        main([model, "s3://b/a.tif", "s3://b/text.tif"])
    with pytest.raises(ConfigError, match="would replace a scene"):
        main([model, "s3://b/a.tif", "s3://b/a.tif", "--overwrite"])


def test_a_remote_scene_is_never_read_whole(store, monkeypatch) -> None:
    scene_file(store / "a.tif", height=400, width=300)
    monkeypatch.setattr(storage, "download", None)
    read_bytes = storage.read_bytes
    monkeypatch.setattr(
        storage, "read_bytes", lambda uri: read_bytes(uri) if "parts" in str(uri) else pytest.fail(uri)
    )
    run("s3://b/a.tif", "s3://b/map.tif")
    assert sorted(contents(store)) == ["a.tif", "map.tif", "map.tif.aux.xml"]


# --- asked before, not after -------------------------------------------------------------------------------------


def test_windows_are_counted_without_being_made() -> None:
    draw = np.random.default_rng(0)
    for _ in range(300):
        length, window = draw.integers(1, 3000), draw.integers(1, 600)
        overlap = draw.integers(0, window)
        assert span_count(length, window, overlap) == len(spans(int(length), int(window), int(overlap)))


@pytest.mark.parametrize(
    ("metres", "words", "message"),
    [
        (9700, ["--resample"], r"9,700 m per pixel to the model's 0\.3 m turns 90 x 70 .* 2,910,000 x .* 32,333 tim"),
        (0.001, ["--resample"], r"turns 90 x 70 pixels into 1 x 1: less than 32 pixels per side"),
        (0.3, ["--window", "16"], r"--window 16: at least 32 pixels"),
        (0.3, ["--bands", "1,2"], "--bands 1,2: the model takes 3"),
    ],
)  # fmt: skip
def test_impossible_work_is_refused_with_the_numbers(tmp_path, metres, words, message) -> None:
    where = {"crs": "EPSG:32632", "transform": rasterio.Affine(metres, 0, 100, 0, -metres, 200)}
    source = scene_file(tmp_path / "s.tif", **where)
    fine = str(tiny_bundle(tmp_path / "fine", model_info().classes, gsd=0.3))
    with pytest.raises((ConfigError, DataError), match=message):
        main([fine, str(source), str(tmp_path / "map.tif"), *words])
    assert sorted(f.name for f in tmp_path.iterdir()) == ["fine", "s.tif"]


def test_too_many_windows_and_too_large_ones_are_refused(tmp_path, model, monkeypatch) -> None:
    source = scene_file(tmp_path / "s.tif", height=300, width=300)
    monkeypatch.setattr(planning, "MAX_WINDOWS", 20)
    with pytest.raises(ConfigError, match=r"300 x 300 pixels in windows of 64 .* are 81 windows, at most 20"):
        main([model, str(source), str(tmp_path / "map.tif"), "--window", "64", "--overlap", "0.5"])
    monkeypatch.undo()
    monkeypatch.setattr(planning.psutil, "virtual_memory", lambda: type("M", (), {"total": 2**20}))
    with pytest.raises(ConfigError, match=r"--batch-size 1 x --window 300 x 300 x 11 planes .* = 3\.8 MiB"):
        main([model, str(source), str(tmp_path / "map.tif"), "--window", "100000"])


def test_what_it_takes_and_what_looks_odd_is_said_before_the_work(tmp_path, monkeypatch, capsys) -> None:
    where = {"crs": "EPSG:32632", "transform": rasterio.Affine(5, 0, 100, 0, -5, 200)}
    for name in ("a", "b"):
        scene_file(tmp_path / "in" / f"{name}.tif", height=300, **where)
    fine = str(tiny_bundle(tmp_path / "model", model_info().classes, gsd=0.3, window=32))
    said = []
    monkeypatch.setattr(
        "pipeline.prediction.run.map_scene",
        lambda *_, **__: said.append(capsys.readouterr().err) or _killed(),
    )
    with pytest.raises(KeyboardInterrupt):
        main([fine, str(tmp_path / "in"), str(tmp_path / "out")])
    lines = said[0].splitlines()
    assert lines[0].startswith("2 scene(s), 78 window(s), up to 0.0 MiB on disk, ")
    assert (
        "a.tif and 1 more: pixels of 5 m, the model was trained with 0.3 m: things look 17 times too small"
        in lines[1]
    )
    assert lines[2].startswith("about ")


def test_workers_get_what_a_scene_needs_and_their_maps_are_found(
    tmp_path, model, monkeypatch, capsys
) -> None:
    for name in ("a", "b"):
        scene_file(tmp_path / "in" / f"{name}.tif")
    (tmp_path / "in" / "c.tif").write_bytes(b"II*")
    worked = []

    def here(function, pieces, folder, where, settings, config):
        assert config.workers == 2
        worker = ModelWorker(read_files(folder), where, settings)
        for number, piece in enumerate(pickle.loads(pickle.dumps(pieces))):
            worked.append(piece[0])
            yield number, worker.work(function, piece)

    monkeypatch.setattr("pipeline.prediction.run.spread", here)
    words = [model, str(tmp_path / "in"), str(tmp_path / "out"), "--workers", "2"]
    with pytest.raises(DataError, match="1 of 3 scenes"):
        main(words)
    assert [Path(source).name for source, _ in worked] == ["a.tif", "b.tif"]
    with pytest.raises(DataError, match="1 of 3 scenes"):
        main(words)
    assert len(worked) == 2
    assert capsys.readouterr().err.count("finished before") == 2


def test_a_disk_without_room_is_said_first(tmp_path, model, monkeypatch) -> None:
    source = scene_file(tmp_path / "s.tif", height=700, width=700)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("D", (), {"free": 100_000}))
    with pytest.raises(
        StorageError, match=r"mapping takes about 0\.3 MiB there, 0\.1 MiB are free\. Free some"
    ):
        main([model, str(source), str(tmp_path / "map.tif")])
    assert not (tmp_path / "map.tif.parts").exists()

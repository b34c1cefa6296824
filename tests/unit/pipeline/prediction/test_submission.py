import io
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from d2ls.errors import ConfigError, DataError
from pipeline.prediction.submission import RULES, check, encode, problems, write

LOVEDA = replace(RULES["loveda"], count=3, sizes=((32, 32),))
UAVID = replace(RULES["uavid"], count=2, sizes=((20, 36), (20, 40)))
NAMES = ["4191.png", "4192.png", "4193.png"]
FRAMES = ["seq21/Labels/000000.png", "seq38/Labels/000900.png"]


def ids(classes, shape=(32, 32), seed=0):
    return np.random.default_rng(seed).integers(0, classes, shape).astype(np.uint8)


def png(pixels, mode=None):
    stream = io.BytesIO()
    Image.fromarray(pixels, mode).save(stream, format="PNG")
    return stream.getvalue()


@pytest.fixture
def loveda(tmp_path):
    write(LOVEDA, tmp_path / "s.zip", ((name, ids(7, seed=i)) for i, name in enumerate(NAMES)))
    return tmp_path / "s.zip"


@pytest.fixture
def uavid(tmp_path):
    write(UAVID, tmp_path / "s", ((name, ids(8, (20, 40), i)) for i, name in enumerate(FRAMES)))
    return tmp_path / "s"


def rebuilt(path, change):
    """The same zip with some members changed: `change` maps the dictionary of members in place."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_true_rules() -> None:
    assert RULES["loveda"].count == 1796
    assert RULES["loveda"].sizes == ((1024, 1024),)
    assert RULES["uavid"].count == 150
    assert RULES["uavid"].entry("/data/uavid_test/seq21/Images/000300.png") == "seq21/Labels/000300.png"
    assert RULES["loveda"].entry("Test/Urban/images_png/4191.png") == "4191.png"
    with pytest.raises(DataError, match="seqN/Images"):
        RULES["uavid"].entry("seq21/000300.png")


def test_a_loveda_submission_is_flat_grey_and_passes(loveda) -> None:
    check(LOVEDA, loveda, dict.fromkeys(NAMES, (32, 32)))
    with zipfile.ZipFile(loveda) as archive:
        assert archive.namelist() == NAMES
        image = Image.open(io.BytesIO(archive.read(NAMES[1])))
    assert image.mode == "L"
    np.testing.assert_array_equal(np.asarray(image), ids(7, seed=1))


def test_a_uavid_submission_is_coloured_in_folders_and_passes(uavid, tmp_path) -> None:
    check(UAVID, uavid, dict.fromkeys(FRAMES, (20, 40)))
    image = Image.open(uavid / FRAMES[0])
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), UAVID.classes.colorize(ids(8, (20, 40))))
    write(UAVID, tmp_path / "s.zip", ((name, ids(8, (20, 40))) for name in FRAMES))
    check(UAVID, tmp_path / "s.zip", dict.fromkeys(FRAMES, (20, 40)))
    with pytest.raises(ConfigError, match="exists already"):
        write(UAVID, uavid, [])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda m: m.update({"4191.png": png(ids(7, (32, 31)))}),
            "4191.png: 32 x 31 pixels, 32 x 32 are expected",
        ),
        (lambda m: m.update({"4191.png": png(ids(9))}), "4191.png: holds 7, 8, which is no class"),
        (lambda m: m.update({"4191.png": png(np.zeros((32, 32, 3), np.uint8))}), "mode RGB, a PNG of mode L"),
        (lambda m: m.update({"4191.png": b"no image"}), "4191.png: not an image"),
        (lambda m: m.update({"x.png": m.pop("4191.png")}), "x.png: not a name"),
        (lambda m: m.update({"9.png": m.pop("4191.png")}), "9.png: there is no such test image"),
        (lambda m: m.pop("4191.png"), "2 files, 3 are expected"),
        (lambda m: m.pop("4191.png"), "4191.png: missing"),
        (lambda m: m.update({"out/4191.png": m.pop("4191.png")}), "out/4191.png: not a name"),
        (lambda m: m.update({"out/": b""}), "out/: a folder, the zip must be flat"),
    ],
)
def test_what_loveda_would_not_take_is_listed(loveda, change, words) -> None:
    result = problems(LOVEDA, rebuilt(loveda, change), dict.fromkeys(NAMES, (32, 32)))
    assert any(words in problem for problem in result), result
    with pytest.raises(DataError, match="would not take this"):
        check(LOVEDA, loveda, dict.fromkeys(NAMES, (32, 32)))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (FRAMES[0], png(np.full((20, 40, 3), 7, np.uint8)), "holds (7, 7, 7), which is no class"),
        (FRAMES[0], png(np.zeros((20, 36, 3), np.uint8)), "20 x 36 pixels, 20 x 40 are expected"),
        (FRAMES[0], png(ids(8, (20, 40))), "mode L, a PNG of mode RGB"),
        (
            "seq1/Labels/000000.png",
            png(np.zeros((20, 40, 3), np.uint8)),
            "seq1/Labels/000000.png: not a name",
        ),
        ("seq21/Labels/000050.png", png(np.zeros((20, 40, 3), np.uint8)), "3 files, 2 are expected"),
    ],
)
def test_what_uavid_would_not_take_is_listed(uavid, name, content, words) -> None:
    (uavid / name).parent.mkdir(parents=True, exist_ok=True)
    (uavid / name).write_bytes(content)
    result = problems(UAVID, uavid, dict.fromkeys(FRAMES, (20, 40)))
    assert any(words in problem for problem in result), result


def test_twice_the_same_name_and_no_zip_at_all(loveda, tmp_path) -> None:
    with zipfile.ZipFile(loveda, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("4191.png", png(ids(7)))
    assert "4191.png: is there 2 times" in problems(LOVEDA, loveda)
    (tmp_path / "bad.zip").write_bytes(b"no zip")
    assert "cannot be read" in problems(LOVEDA, tmp_path / "bad.zip")[0]


def test_a_damaged_zip_is_told_together_with_what_came_before(loveda) -> None:
    rebuilt(loveda, lambda m: m.update({"4191.png": b"no image"}))
    content = bytearray(loveda.read_bytes())
    start = content.index(b"IEND") - 40  # in the second image's pixels
    content[start : start + 20] = bytes(20)
    loveda.write_bytes(content)
    result = problems(LOVEDA, loveda)
    assert result[0] == "4191.png: not an image"
    assert "CRC" in result[-1]


def test_pixels_without_class_are_refused_and_leave_nothing(tmp_path) -> None:
    labels = ids(7)
    labels[0, :4] = 255
    with pytest.raises(DataError, match="4 pixels have no class"):
        encode(LOVEDA, labels)
    with pytest.raises(DataError):
        write(LOVEDA, tmp_path / "s.zip", [("4191.png", labels)])
    assert list(tmp_path.iterdir()) == []


def test_a_submission_is_the_same_bytes_again(loveda) -> None:
    before = loveda.read_bytes()
    write(LOVEDA, loveda, ((name, ids(7, seed=i)) for i, name in enumerate(NAMES)), overwrite=True)
    assert loveda.read_bytes() == before

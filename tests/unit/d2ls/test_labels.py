from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2ls.errors import ConfigError, LabelError
from d2ls.labels import IGNORE, ClassTable, LabelCodes, count_code

TABLE = ClassTable.create(("a", "b", "c"), ((1, 2, 3), (255, 0, 0), (0, 0, 0)), (True, True, False))
COLORS = LabelCodes.from_colors({(1, 2, 3): 0, (255, 0, 0): 1, (0, 0, 0): 2, (9, 9, 9): IGNORE})
IDS = LabelCodes.from_ids({0: IGNORE, 1: 0, 2: 1, 3: 2})
WIDE = LabelCodes.from_ids({7: 0, 300: 1, 65535: 2, 0: IGNORE})


@settings(max_examples=30)
@given(st.integers(1, 20), st.integers(1, 20), st.randoms(use_true_random=False))
@pytest.mark.parametrize("codes", [COLORS, IDS], ids=["colours", "ids"])
def test_codes_survive_a_round_trip(codes, height, width, random):
    ids = np.array(
        [[random.choice((0, 1, 2, IGNORE)) for _ in range(width)] for _ in range(height)], np.uint8
    )
    raw_of = {value: code for code, value in (codes.ids or codes.colors).items()}
    raw = np.array([[raw_of[value] for value in row] for row in ids.tolist()], np.uint8)
    np.testing.assert_array_equal(codes.encode(raw, where="x"), ids)


def test_16_bit_ids():
    raw = np.array([[7, 300], [65535, 0]], np.uint16)
    np.testing.assert_array_equal(WIDE.encode(raw, where="x"), [[0, 1], [2, IGNORE]])
    with pytest.raises(LabelError, match="x: unknown label id 8 in 1 pixels, first at row 1 column 0"):
        WIDE.encode(np.array([[7], [8]], np.uint16), where="x")


def test_unknown_codes_are_counted_and_placed_in_the_file():
    raw = np.full((6, 5, 3), 9, np.uint8)
    raw[2, 3] = raw[4, 0] = (9, 9, 8)
    raw[5, 4] = (0, 1, 0)
    message = (
        r"m\.png: unknown label colour \(0, 1, 0\) in 1 pixels, first at row 105 column 14; "
        r"\(9, 9, 8\) in 2 pixels, first at row 102 column 13\. Known: \[\(0, 0, 0\), "
    )
    with pytest.raises(LabelError, match=message):
        COLORS.encode(raw, where="m.png", origin=(100, 10))
    with pytest.raises(LabelError, match="unknown label id 200 in 1 pixels, first at row 0 column 1"):
        IDS.encode(np.array([[1, 200]], np.uint8), where="m.png")


def test_no_unknown_value_ever_becomes_a_class():
    for value in range(4, 256):
        with pytest.raises(LabelError):
            IDS.encode(np.full((2, 2), value, np.uint8), where="x")


def test_the_kind_of_image_must_fit():
    with pytest.raises(LabelError, match="label ids need a single-channel image"):
        IDS.encode(np.zeros((2, 2, 3), np.uint8), where="x")
    with pytest.raises(LabelError, match="label colours need an RGB image"):
        COLORS.encode(np.zeros((2, 2), np.uint8), where="x")
    with pytest.raises(ConfigError, match="either ids or colours"):
        LabelCodes({}, {})


def test_class_tables_are_checked_and_travel_as_json():
    assert ClassTable.from_json(TABLE.to_json()) == TABLE
    painted = TABLE.colorize(np.array([[0, 1], [2, IGNORE]], np.uint8), ignore_color=(7, 7, 7))
    np.testing.assert_array_equal(painted, [[(1, 2, 3), (255, 0, 0)], [(0, 0, 0), (7, 7, 7)]])
    for names, colors, scored, message in (
        (("a", "a"), ((0, 0, 0),) * 2, None, "names repeat"),
        (("a", "b"), ((0, 0, 0),), None, "uneven"),
        (("a",), ((0, 0, 256),), None, "outside 0..255"),
        (("a",), ((0, 0, 0),), (False,), "no class is scored"),
        ((), (), None, "needs 1 to 254 classes"),
    ):
        with pytest.raises(ConfigError, match=message):
            ClassTable.create(names, colors, scored)


NEGATIVE = LabelCodes({0: 0, 1: 1, -1: IGNORE, -9999: IGNORE}, {}, nan_ignored=True)


def test_negative_ids_and_floats_that_are_whole_numbers():
    raw = np.array([[0, 1], [-1, -9999]])
    required = [[0, 1], [IGNORE, IGNORE]]
    for dtype in (np.int16, np.int64, np.float32, np.float64):
        np.testing.assert_array_equal(NEGATIVE.encode(raw.astype(dtype), where="x"), required)
    np.testing.assert_array_equal(NEGATIVE.encode(np.array([[1, 0]], np.uint8), where="x"), [[1, 0]])


def test_floats_that_are_no_whole_numbers_are_counted_and_placed():
    raw = np.array([[0, 0.5, 1], [np.nan, 1.5, 0.5]], np.float32)
    expected = r"m: label ids are whole numbers, this image of float32 holds 0\.5 in 2 pixels, first at row 10 column 6"
    with pytest.raises(LabelError, match=expected + r"; 1\.5 in 1 pixels, first at row 11 column 6\."):
        NEGATIVE.encode(raw, where="m", origin=(10, 5))
    with pytest.raises(
        LabelError, match=r"nan in 1 pixels, first at row 1 column 0\..*ignored: \[nan, \.\.\.\]"
    ):
        IDS.encode(raw, where="m")
    raw = np.where(raw == np.floor(raw), raw, np.nan)
    np.testing.assert_array_equal(NEGATIVE.encode(raw, where="m"), [[0, IGNORE, 1], [IGNORE, IGNORE, IGNORE]])
    for value in (np.inf, -np.inf, 1e300):
        with pytest.raises(LabelError, match="whole numbers"):
            NEGATIVE.encode(np.array([[value, 1.0]]), where="m")
    with pytest.raises(LabelError, match="holds complex64"):
        NEGATIVE.encode(np.ones((1, 1), np.complex64), where="m")


def test_transparent_labels_are_refused_or_ignored():
    raw = np.array([[(1, 2, 3, 255), (7, 7, 7, 0), (255, 0, 0, 0)]], np.uint8)
    with pytest.raises(LabelError, match=r"alpha is 0 in 2 pixels, first at row 0 column 1 \(opaque: 255\)"):
        COLORS.encode(raw, where="m")
    transparent = replace(COLORS, transparent_ignored=True)
    np.testing.assert_array_equal(transparent.encode(raw, where="m"), [[0, IGNORE, IGNORE]])
    raw[0, 0, 3] = 254
    with pytest.raises(LabelError, match="alpha is 254 in 1 pixels"):
        transparent.encode(raw, where="m")
    ids = np.array([[(1, 65535), (9, 0)]], np.uint16)
    np.testing.assert_array_equal(
        replace(IDS, transparent_ignored=True).encode(ids, where="m"), [[0, IGNORE]]
    )


def test_codes_are_counted():
    raw = np.array([[(1, 2, 3), (1, 2, 4), (1, 2, 3)]], np.uint8)
    assert count_code(raw, (1, 2, 3)) == 2
    assert count_code(np.dstack([raw, raw[..., :1]]), (1, 2, 4)) == 1
    assert count_code(raw[..., 2], 3) == 2
    assert count_code(raw[..., 1:], 2) == 3

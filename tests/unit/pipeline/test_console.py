"""If the output is not a terminal, long work prints a line from time to time, and short work none."""

import pytest

from pipeline import console


def test_long_work_says_how_far_it_is_and_how_long_it_takes(capsys, monkeypatch):
    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    with console.ProgressDisplay("scoring m on test") as display:
        display.advance(0, 4)
        display.advance(1, 4, "2 MB/s")
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "scoring m on test: 0/4"
    assert said[1].startswith("scoring m on test: 1/4, 2 MB/s, about 0 s left")


@pytest.mark.parametrize(("seconds", "words"), [(42.4, "42 s"), (600, "10 min"), (9000, "2.5 h")])
def test_time_is_said_as_roughly_as_it_is_known(seconds, words):
    assert console.format_duration(seconds) == words


@pytest.mark.parametrize("silent", [False, True])
def test_short_or_silent_work_says_nothing(capsys, monkeypatch, silent):
    if silent:
        monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    with console.ProgressDisplay("scoring", silent=silent) as display:
        display.advance(1, 4)
        display.update("line")
    assert capsys.readouterr() == ("", "")

"""Progress of a sweep: reports of trials, and a line on all of them if none reports."""

import io
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from pipeline.tuning.display import SweepProgress, show_next
from pipeline.tuning.report import Trial

ONE, TWO = (Trial(key, f"sweep-{key}", {"model.stages": stages}) for key, stages in (("aa", 1), ("bb", 2)))


def at(step, **changes):
    values = {"step": step, "epoch": (step - 1) // 10 + 1, "steps_per_epoch": 10, "total_steps": 30}
    return {**values, "share_done": step / 30, "terms": {"total": 1.25}, "time": time.time() + 1, **changes}


def watched(under_way, **options):
    console = Console(file=io.StringIO(), width=120)
    latest = {trial.key: progress for trial, progress in under_way}
    running = [trial for trial, _ in under_way]
    return SweepProgress(
        console, 2, 3, lambda: running, lambda trial: latest[trial.key], **options
    ), console.file


def test_a_look_says_where_each_trial_stands_and_how_long_it_takes():
    progress, out = watched([(ONE, at(14)), (TWO, at(3))])
    progress.look()
    text = out.getvalue()
    assert "0/2 trials | aa epoch 2/3 step 4/10 loss 1.250, bb epoch 1/3 step 3/10 loss 1.250 | about" in text
    assert text.count("\n") == 1, "a line is broken"


def test_what_a_broken_off_session_left_is_not_shown():
    progress, out = watched([(ONE, at(14, time=time.time() - 1000)), (TWO, {})])
    progress.look()
    assert "trials are starting | time left unknown" in out.getvalue()


def test_reports_count_and_ended_trials_are_not_looked_after():
    progress, out = watched([(ONE, at(14))])
    progress(Trial("aa", "sweep-aa", {"model.stages": 1}, score=0.5, epoch=3), "finished")
    progress.look()
    assert "1/2 trials | aa stages=1 | finished | best val/miou 0.5000" in out.getvalue()
    assert "trials are starting" in out.getvalue()


def test_the_end_is_when_all_have_ended():
    progress, out = watched([(ONE, at(30)), (TWO, at(30))])
    progress.look()
    assert "nearly done" in out.getvalue()
    for trial in (ONE, TWO):
        progress(trial, "finished")
    assert out.getvalue().rstrip().endswith("done")
    assert "| done" in out.getvalue()


def test_epochs_of_an_earlier_session_took_no_time_in_this_one(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    progress, out = watched([(ONE, at(25))], before={"aa": 2 / 3})
    clock[0] += 60
    progress.look()  # half an epoch in a minute, of six epochs two were done before
    assert "about 7 min left" in out.getvalue()


def test_a_trial_that_its_time_budget_ends_is_further_than_its_epochs(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    progress, out = watched([(ONE, at(10, share_done=0.8))])
    clock[0] += 60
    progress(Trial("aa", "sweep-aa", {"model.stages": 1}, score=0.5, epoch=1), "epoch")
    assert "about 90 s left" in out.getvalue(), "0.8 of two trials took a minute"


def test_silence_is_broken_and_ends_with_the_sweep():
    progress, out = watched([(ONE, at(14))], quiet=0.02)
    with progress:
        deadline = time.monotonic() + 20
        while "aa epoch 2/3" not in out.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    said = out.getvalue()
    assert "aa epoch 2/3" in said
    time.sleep(0.1)
    assert out.getvalue() == said


@pytest.mark.parametrize(("name", "shown"), [("demo", True), ("town", False)])
def test_the_next_commands_fit_the_sweep(name, shown):
    console = Console(file=io.StringIO(), width=120)
    store = SimpleNamespace(ui_command=lambda: "mlflow ui", run_list=lambda experiment: "http://runs")
    recipe = SimpleNamespace(
        name=name,
        model_name=f"d2ls-{name}",
        output_dir="runs",
        experiment=name,
        shards=SimpleNamespace(uri="shards"),
        roles=SimpleNamespace(test="test"),
        sweep=SimpleNamespace(space={}),
    )
    show_next(console, store, recipe, SimpleNamespace(aliases=["champion"]), "sweep", seeds=1 if shown else 3)
    out = console.file.getvalue()
    assert f"pipeline.predict models:/d2ls-{name}@champion" in out
    assert ("recipes/own.yaml" in out) == shown
    assert ("--seeds 3" in out) == shown
